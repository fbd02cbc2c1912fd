"""OpenAI Realtime over WebRTC: sessions, which the protocol names calls, are opened and closed by HTTP requests.

    POST /v1/realtime/calls             an SDP offer, or a form of `sdp` and `session`  ─►  201, an SDP answer, Location
    POST /v1/realtime/calls/{id}/hangup

A call holds a slot from its answer until it ends, or until no connection is established in time.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from starlette.datastructures import UploadFile

from speechgpt2.server.admission import AdmissionError
from speechgpt2.server.api_errors import ApiError, read_body, warning_headers
from speechgpt2.server.auth import Principal
from speechgpt2.server.call_session import CallSerializer, CallSession
from speechgpt2.server.gateway import Gateway, WireProtocol
from speechgpt2.server.items import new_id
from speechgpt2.server.realtime import make_session
from speechgpt2.server.saved_sessions import SessionRecord
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import SessionConfig, ineffective_settings

if TYPE_CHECKING:
    from speechgpt2.server.webrtc_peer import PeerConnection

PATH = "/v1/realtime/calls"
SDP = "application/sdp"
FORM = "multipart/form-data"
MAX_REQUEST = 256 * 1024  # bytes
CLOSE_TIMEOUT = 5.0  # seconds that a hang-up waits for the call's end


@dataclass(frozen=True)
class ActiveCall:
    """A call in progress; `task` ends with it."""

    principal: Principal
    peer: PeerConnection
    task: asyncio.Task[None]


class RealtimeCalls(WireProtocol):
    """The routes of Realtime sessions over WebRTC."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.active: dict[str, ActiveCall] = {}
        self.router.add_api_route(PATH, self.create, methods=["POST"])
        self.router.add_api_route(PATH + "/{id}/hangup", self.hang_up, methods=["POST"])

    async def create(self, request: Request) -> Response:
        """Answer an offer, or reject it at once."""
        principal = self.gateway.authenticate(request)
        webrtc = import_webrtc()
        offer, changes = await read_offer(request)
        with ExitStack() as stack:
            record = await self._resume(stack, principal, request.query_params.get("session_id"))
            config, headers = self._settings(principal, record, changes, request.query_params.get("model"))
            try:
                stack.enter_context(self.gateway.admission.admit(principal.key_id))
                record = record or await self._new_record(stack, principal, config)
                session = self._open_session(stack, config, record)
            except AdmissionError as error:
                raise self.gateway.rejection(error) from None
            peer = webrtc.PeerConnection(session, self.gateway.config.ice_servers)
            try:
                answer = await peer.answer(offer)
            except BaseException as error:
                await peer.close()
                if not isinstance(error, webrtc.InvalidOffer):
                    raise
                raise ApiError(400, f"The offer cannot be answered: {error}.", "invalid_offer", "sdp") from None
            resources = stack.pop_all()
        id = new_id("rtc")
        task = asyncio.create_task(self._run(id, principal, peer, resources))
        self.active[id] = ActiveCall(principal, peer, task)
        return Response(answer, 201, {"Location": f"{PATH}/{id}", **headers}, SDP)

    def _settings(
        self, principal: Principal, record: SessionRecord | None, changes: dict[str, Any], model: str | None
    ) -> tuple[SessionConfig, dict[str, str]]:
        """Return the settings of a call, and the headers about those that have no effect."""
        try:
            config = self.gateway.updated(self.gateway.session_config(principal, record=record), changes)
            warnings = self.gateway.warnings_of(principal, config, model, resumed=record is not None)
            return config, warning_headers([*warnings, *ineffective_settings(config, changes)])
        except ProtocolError as error:
            raise ApiError(400, str(error), error.code, error.param) from None

    async def _resume(self, stack: ExitStack, principal: Principal, id: str | None) -> SessionRecord | None:
        if id is None:
            return None
        record = await self.gateway.resume(principal, id)
        stack.callback(record.release)
        return record

    async def _new_record(self, stack: ExitStack, principal: Principal, config: SessionConfig) -> SessionRecord | None:
        if config.only_transcribes:
            return None
        record = await asyncio.to_thread(self.gateway.saved.create, principal.key_id)
        if record is not None:
            stack.callback(record.release)
        return record

    def _open_session(self, stack: ExitStack, config: SessionConfig, record: SessionRecord | None) -> CallSession:
        """Open a session that closes with `stack`."""
        dialogue = stack.enter_context(self.gateway.open_dialogue(config, record))
        session = make_session(CallSession, self.gateway, CallSerializer(), dialogue, config, record)
        stack.enter_context(self.gateway.register(session))
        return session

    async def _run(self, id: str, principal: Principal, peer: PeerConnection, resources: ExitStack) -> None:
        try:
            with resources:  # the slot is free at once; closing the connection may take a while
                await self.gateway.run_session(peer.session, principal, peer.run())
        finally:
            del self.active[id]
            await peer.close()

    async def hang_up(self, request: Request, id: str) -> Response:
        """End a call. Allowed for every client with the API key that opened it."""
        principal, call = self.gateway.authenticate(request), self.active.get(id)
        if call is None or call.principal.key_id != principal.key_id:
            raise ApiError(404, f"There is no call '{id}'.", "call_not_found")
        call.peer.disconnect(1000, "hung up")
        await asyncio.wait([call.task], timeout=CLOSE_TIMEOUT)
        return Response(status_code=200)

    async def close(self) -> None:
        """End all calls."""
        calls = list(self.active.values())
        for call in calls:
            call.peer.disconnect(1001, "the server is shutting down")
        if calls:
            await asyncio.wait([call.task for call in calls], timeout=CLOSE_TIMEOUT)


def import_webrtc() -> ModuleType:
    """Import webrtc_peer.py.

    Raises:
        ApiError: aiortc is not installed (501).
    """
    try:
        from speechgpt2.server import webrtc_peer
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("speechgpt2"):
            raise
        message = "This server does not support WebRTC: pip install 'speechgpt2[webrtc]'."
        raise ApiError(501, message, "webrtc_unavailable", kind="server_error") from None
    return webrtc_peer


async def read_offer(request: Request) -> tuple[str, dict[str, Any]]:
    """Read a request's SDP offer and the session settings that come with it.

    Raises:
        ApiError: The request is not valid.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == SDP:
        return _decode(await read_body(request, MAX_REQUEST), "sdp"), {}
    if kind != FORM:
        raise ApiError(415, f"The Content-Type must be {SDP} or {FORM}, not '{kind}'.", "unsupported_media_type")
    length = request.headers.get("content-length")
    if length is None or not length.isdigit() or int(length) > MAX_REQUEST:
        raise ApiError(413, f"A form needs a Content-Length of at most {MAX_REQUEST} bytes.", "request_too_large")
    async with request.form(max_files=2, max_fields=16) as form:
        fields = {
            key: _decode(await value.read(), key) if isinstance(value, UploadFile) else value
            for key, value in form.items()
        }
    if "sdp" not in fields:
        raise ApiError(400, "sdp is missing.", "missing_required_parameter", "sdp")
    try:
        session = json.loads(fields.get("session") or "{}")
    except (ValueError, RecursionError):
        raise ApiError(400, "session is not valid JSON.", "invalid_json", "session") from None
    if not isinstance(session, dict):
        raise ApiError(400, "session must be a JSON object.", "invalid_value", "session")
    return fields["sdp"], session


def _decode(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ApiError(400, f"{path} is not valid UTF-8.", "invalid_value", path) from None
