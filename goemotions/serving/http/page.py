"""The page at ``/``: labels a comment and shows each label's probability beside its threshold. It loads nothing from elsewhere."""

from __future__ import annotations

import json
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goemotions.serving.service import Service

POLICY = "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'"


def routes(service: Service) -> list[Route]:
    """The routes of the page, its style sheet and its script."""
    model = {
        "name": service.name,
        "version": service.version,
        "engine": service.predictor.engine.name,
        "log_share": service.log.share if service.log else 0,
        "thresholds": dict(zip(service.labels, service.predictor.bundle.thresholds.values, strict=True)),
    }
    # Unescaped, "</script" would end the element that holds the JSON.
    html = _template("page.html").replace("{{ model }}", json.dumps(model).replace("<", "\\u003c"))
    return [
        _route("/", html, "text/html"),
        _route("/page.css", _template("page.css"), "text/css"),
        _route("/page.js", _template("page.js"), "text/javascript"),
    ]


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text("utf-8")


def _route(path: str, content: str, media_type: str) -> Route:
    async def page(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Content-Security-Policy": POLICY})

    return Route(path, page)
