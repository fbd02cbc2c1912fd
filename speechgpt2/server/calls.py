"""Calls, the protocol's word for sessions over WebRTC: how they are made and ended by plain requests.

    POST /v1/realtime/calls             an SDP offer, or a form of `sdp` and `session`  ─►  201, an SDP answer, Location
    POST /v1/realtime/calls/{id}/hangup

A call takes its place when it is answered, and gives it back when it ends, or if no connection comes about.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import UploadFile

from speechgpt2.server.auth import Caller
from speechgpt2.server.conversation import new_id
from speechgpt2.server.limits import Refused
from speechgpt2.server.problems import Problem, read_body
from speechgpt2.server.wire import WireError

if TYPE_CHECKING:
    from speechgpt2.server.app import App
    from speechgpt2.server.webrtc import Peer

SDP = "application/sdp"
FORM = "multipart/form-data"
LARGEST = 256 * 1024  # bytes of a request
PATIENCE = 5.0  # seconds that a hang-up waits for the call's end


@dataclass(frozen=True)
class Ongoing:
    """A call, whose `task` ends with it."""

    caller: Caller
    peer: Peer
    task: asyncio.Task[None]


class Calls:
    """The routes of one application, and the calls that it is in."""

    def __init__(self, app: App):
        self.app = app
        self.ongoing: dict[str, Ongoing] = {}
        self.router = APIRouter(prefix="/v1/realtime/calls")
        self.router.add_api_route("", self.create, methods=["POST"])
        self.router.add_api_route("/{id}/hangup", self.hang_up, methods=["POST"])

    async def create(self, request: Request) -> Response:
        """An offer is answered, or refused at once."""
        caller = self.app.enter(request)
        webrtc = library()
        offer, wanted = await read_offer(request)
        try:
            session = self.app.new_session(caller, request.query_params.get("model")).updated(wanted)
        except WireError as error:
            raise Problem(400, str(error), error.code, error.param) from None
        with ExitStack() as stack:
            try:
                stack.enter_context(self.app.admission.place(caller.name))
                call = stack.enter_context(self.app.connected(session, webrtc.Call))
            except Refused as refused:
                raise self.app.refusal(refused) from None
            peer = webrtc.Peer(call, self.app.config.ice_servers)
            try:
                answer = await peer.answer(offer)
            except BaseException as error:
                await peer.close()
                if not isinstance(error, webrtc.BadOffer):
                    raise
                raise Problem(400, f"The offer cannot be answered: {error}.", "invalid_offer", "sdp") from None
            held = stack.pop_all()
        id = new_id("rtc")
        task = asyncio.create_task(self._attend(id, caller, peer, held))
        self.ongoing[id] = Ongoing(caller, peer, task)
        return Response(answer, 201, {"Location": f"{self.router.prefix}/{id}"}, SDP)

    async def _attend(self, id: str, caller: Caller, peer: Peer, held: ExitStack) -> None:
        try:
            with held:  # the place is free at once; saying goodbye may take a while
                await self.app.attend(peer.call, caller, peer.talk())
        finally:
            del self.ongoing[id]
            await peer.close()

    async def hang_up(self, request: Request, id: str) -> Response:
        """A call is ended by whoever may use its key."""
        caller, call = self.app.enter(request), self.ongoing.get(id)
        if call is None or call.caller.name != caller.name:
            raise Problem(404, f"There is no call '{id}'.", "call_not_found")
        call.peer.leave(1000, "hung up")
        await asyncio.wait([call.task], timeout=PATIENCE)
        return Response(status_code=200)

    async def close(self) -> None:
        """End all calls."""
        calls = list(self.ongoing.values())
        for call in calls:
            call.peer.leave(1001, "the server is shutting down")
        if calls:
            await asyncio.wait([call.task for call in calls], timeout=PATIENCE)


def library() -> Any:
    """The module webrtc.py. Errors: `Problem` if what it needs is not installed."""
    try:
        from speechgpt2.server import webrtc
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("speechgpt2"):
            raise
        words = "This server does not speak WebRTC: it needs pip install 'speechgpt2[webrtc]'."
        raise Problem(501, words, "webrtc_unavailable", kind="server_error") from None
    return webrtc


async def read_offer(request: Request) -> tuple[str, dict[str, Any]]:
    """A request's SDP, and the session's settings that come with it. Errors: `Problem`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == SDP:
        return _text(await read_body(request, LARGEST), "sdp"), {}
    if kind != FORM:
        raise Problem(415, f"The Content-Type must be {SDP} or {FORM}, not '{kind}'.", "unsupported_media_type")
    length = request.headers.get("content-length")
    if length is None or not length.isdigit() or int(length) > LARGEST:
        raise Problem(413, f"A form needs a Content-Length of at most {LARGEST} bytes.", "request_too_large")
    async with request.form(max_files=2, max_fields=16) as form:
        fields = {
            key: _text(await value.read(), key) if isinstance(value, UploadFile) else value
            for key, value in form.items()
        }
    if "sdp" not in fields:
        raise Problem(400, "sdp is missing.", "missing_required_parameter", "sdp")
    try:
        session = json.loads(fields.get("session") or "{}")
    except (ValueError, RecursionError):
        raise Problem(400, "session is not valid JSON.", "invalid_json", "session") from None
    if not isinstance(session, dict):
        raise Problem(400, "session must be a JSON object.", "invalid_value", "session")
    return fields["sdp"], session


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Problem(400, f"{where} is not valid UTF-8.", "invalid_value", where) from None
