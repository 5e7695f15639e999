"""What failures of an object store mean, by the codes of S3 and the exceptions of its client, and what to do about each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from goemotions import addresses, outages
from goemotions.errors import StorageError, StorageUnavailable


@dataclass(frozen=True)
class Failure:
    """A kind of failure.

    Attributes:
        codes: codes of stores, HTTP statuses, and names of the client's exceptions.
        problem: what is wrong; ``{tries}`` is the number of requests.
        remedy: what to do; ``{region}`` is the region that the store names.
        is_transient: whether the same request may succeed later.
    """

    codes: frozenset[str]
    problem: str
    remedy: str
    is_transient: bool = False


def _failure(codes: str, problem: str, remedy: str, *, is_transient: bool = False) -> Failure:
    return Failure(frozenset(codes.split()), problem, remedy, is_transient)


NOT_KNOWN = _failure(
    "", "the object store refused the request", "check AWS_ENDPOINT_URL, AWS_REGION, and what the store's log says"
)
# The first that has the code: exceptions of the client come before those that they are derived from.
FAILURES = (
    _failure("NoCredentialsError", "no S3 credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    _failure(
        "PartialCredentialsError", "a part of the S3 credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, both"
    ),
    _failure("ProfileNotFound", "there is no such profile of AWS", "fix AWS_PROFILE, or add the profile to AWS_CONFIG_FILE"),
    _failure("ConfigParseError ConfigNotFound", "the configuration of AWS cannot be read", "fix AWS_CONFIG_FILE"),
    _failure(
        "ExpiredToken ExpiredTokenException TokenRefreshRequired RequestExpired SSOTokenLoadError UnauthorizedSSOTokenError "
        "SSOError TokenRetrievalError CredentialRetrievalError LoginError",
        "the credentials have expired or cannot be renewed",
        "log in again, or set new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    ),
    _failure(
        "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken InvalidSecurity AuthFailure InvalidClientTokenId "
        "UnrecognizedClientException XMinioInvalidAccessKeyId 401 Unauthorized",
        "the credentials are not valid there",
        "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that they belong to AWS_ENDPOINT_URL",
    ),
    _failure(
        "RequestTimeTooSkewed RequestInTheFuture",
        "the clock of this machine differs from that of the store",
        "set the clock (NTP)",
    ),
    _failure(
        "AuthorizationHeaderMalformed PermanentRedirect TemporaryRedirect Redirect IllegalLocationConstraintException "
        # The client follows a redirect without a region to itself.
        "RecursionError IncorrectEndpoint InvalidRegion NoRegionError InvalidRegionError 301 302 307 308",
        "the bucket is in another region or at another endpoint",
        "set AWS_REGION={region}, or fix AWS_ENDPOINT_URL",
    ),
    _failure(
        "AccessDenied AllAccessDisabled AccountProblem Forbidden 403 InvalidObjectState",
        "access denied",
        "check the keys and the bucket's policy",
    ),
    _failure("NoSuchBucket", "there is no such bucket", "create it or check the name"),
    _failure("NoSuchKey NoSuchVersion NoSuchUpload", "there is no such object", "check the location"),
    _failure("NotFound 404", "there is no such bucket or object", "check the location"),
    _failure(
        "InvalidBucketName InvalidURI KeyTooLongError", "the location is none that the store accepts", "choose another name"
    ),
    _failure(
        "NotImplemented MethodNotAllowed UnsupportedOperation InvalidArgument InvalidRequest InvalidDigest BadDigest "
        "MissingContentLength XAmzContentSHA256Mismatch InvalidTrailer UnsupportedArgument 405 411 501 FlexibleChecksumError",
        "the store does not support a request",
        "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required; the store must have "
        "conditional writes (If-None-Match, If-Match), by which locks work",
    ),
    _failure(
        "QuotaExceeded XMinioStorageFull InsufficientStorage ServiceQuotaExceededException EntityTooLarge 507",
        "the store is full or over its quota",
        "free space or raise the quota",
    ),
    _failure(
        "SlowDown SlowDownRead SlowDownWrite Throttling ThrottlingException RequestLimitExceeded TooManyRequests "
        "TooManyRequestsException BandwidthLimitExceeded RequestThrottled 429",
        "the store limits the rate of requests and refused {tries}",
        "try again later, or with fewer processes",
        is_transient=True,
    ),
    _failure(
        "InternalError InternalFailure ServiceUnavailable RequestTimeout RequestTimeoutException "
        "XMinioServerNotInitialized 500 502 503 504",
        "the object store failed {tries}",
        "try again later",
        is_transient=True,
    ),
    _failure("SSLError", "the store's certificate cannot be verified", "set AWS_CA_BUNDLE to the certificate authority's file"),
    _failure(
        "ProxyConnectionError InvalidProxiesConfigError",
        "the proxy cannot be reached",
        "fix HTTPS_PROXY, or put the store's host into NO_PROXY",
    ),
    _failure(
        "ConnectionError HTTPClientError EndpointConnectionError ConnectTimeoutError ReadTimeoutError ResponseStreamingError "
        "IncompleteReadError RetriesExceededError ProtocolError HTTPError",
        "the object store cannot be reached",
        "check AWS_ENDPOINT_URL and that it runs",
        is_transient=True,
    ),
)


def named(location: str, error: Exception) -> StorageError:
    """The error of a request as one that says what is wrong and what to do."""
    cause = next((one for one in outages.causes(error) if isinstance(getattr(one, "response", None), dict)), error)
    response: dict[str, Any] = getattr(cause, "response", None) or {}
    details, metadata = response.get("Error") or {}, response.get("ResponseMetadata") or {}
    code = str(details.get("Code") or type(cause).__name__)
    status = str(metadata.get("HTTPStatusCode", ""))
    failure = (
        find(code)
        or next(filter(None, (find(kind.__name__) for kind in type(cause).__mro__)), None)
        or find(status)
        or NOT_KNOWN
    )
    tries = int(metadata.get("RetryAttempts") or 0) + 1
    headers = metadata.get("HTTPHeaders") or {}
    region = details.get("Region") or headers.get("x-amz-bucket-region") or "<the bucket's region>"
    problem = failure.problem.format(tries="once" if tries == 1 else f"{tries} times")
    said = f"{code}: {details['Message']}"[:200] if failure is NOT_KNOWN and details.get("Message") else code
    kind = StorageUnavailable if failure.is_transient else StorageError
    return kind(f"{location}: {problem} ({said}): {failure.remedy.format(region=region)}{_endpoint(location, failure)}")


def find(code: str) -> Failure | None:
    """The failure with this code."""
    return next((failure for failure in FAILURES if code in failure.codes), None)


def _endpoint(location: str, failure: Failure) -> str:
    """A note if the endpoint holds the name of a bucket, so that the store looks for another one."""
    if not failure.codes & {"NoSuchBucket", "NoSuchKey", "404"}:
        return ""
    bucket = location.removeprefix(addresses.S3).partition("/")[0]
    for variable in addresses.ENDPOINTS:
        parts = urlsplit(os.environ.get(variable, ""))
        if parts.path.strip("/") or (parts.hostname or "").startswith(f"{bucket}."):
            return (
                f"; {variable} must not hold the bucket: it is {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            )
    return ""
