"""What the server tells about itself: its OpenAPI document, and its limits."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from plume.apps.serving.schema import MAX_INPUTS, MAX_PARTS, EmbeddingRequest
from plume.apps.shared.limits import Limits

_SCHEMAS = "#/components/schemas/"
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}EmbeddingRequest"}}},
    }
}


class Embedding(BaseModel):
    """One vector: numbers, or base64 of fp32 little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens, media included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The vectors of a request, in the order of its inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Fault(BaseModel):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """A refusal in OpenAI's shape."""

    error: Fault


_REFUSALS = {
    400: "The request cannot be embedded; the message says why.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too much is waiting; Retry-After says when to try again.",
    500: "The server failed; its log says why.",
    507: "The server has no room for a clip.",
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": EmbeddingResponse, "description": "The vectors."},
    **{status: {"model": ErrorResponse, "description": why} for status, why in _REFUSALS.items()},
}


def describe_limits(limits: Limits, clips: Limits, max_body: int) -> dict[str, int | float]:
    """What a request may have at most, by name, for ``/v1/models``."""
    return {
        "inputs": MAX_INPUTS,
        "parts_of_a_chat": MAX_PARTS,
        "characters": limits.max_characters,
        "body_bytes": max_body,
        "picture_bytes": limits.max_bytes,
        "picture_pixels": limits.max_pixels,
        "clip_bytes": clips.max_bytes,
        "clip_frame_pixels": clips.max_pixels,
        "clip_frames": clips.max_frames,
        "clip_decoding_seconds": clips.max_seconds,
    }


def openapi_document(app: FastAPI, name: str, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document of the routes, with the schema of the body, which the server reads itself, within bounds."""
    document = get_openapi(title=app.title, version="1", routes=app.routes)
    request = EmbeddingRequest.model_json_schema(ref_template=_SCHEMAS + "{model}")
    request["properties"]["model"] = {"type": "string", "enum": [name]}
    schemas = document["components"]["schemas"]
    schemas |= request.pop("$defs") | {"EmbeddingRequest": request}
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document
