"""The page at ``/``: one comment, and its emotions as bars against their thresholds. It asks the server itself and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goemotions.serving.service import NAME, Service


def route(service: Service) -> Route:
    """The page of a server."""
    facts = {
        "model": NAME,
        "version": service.version,
        "engine": service.predictor.engine.name,
        "thresholds": dict(zip(service.labels, service.predictor.bundle.thresholds.values, strict=True)),
    }
    # Within a script, "</script" would end it.
    content = json.dumps(facts).replace("<", "\\u003c")
    text = resources.files(__package__).joinpath("page.html").read_text("utf-8").replace('"FACTS"', content)
    policy = f"default-src 'none'; connect-src 'self'; img-src data:; {_allowed(text, 'script')}; {_allowed(text, 'style')}"

    async def show(request: Request) -> Response:
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": policy})

    return Route("/", show)


def _allowed(text: str, tag: str) -> str:
    """The policy that allows the page's own inline scripts or styles and no other."""
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return f"{tag}-src " + " ".join(f"'sha256-{value}'" for value in hashes)
