"""`Client`: streams for scripts and threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Self, TypeVar

import httpx

from service.client import http
from service.client.answers import Answer, ClientError, Status
from service.client.exchanges import Ask, Exchange, ModelExchanges, Place, Returns, carry
from service.client.replies import Lost, Reply
from service.client.tensors import Inputs

T = TypeVar("T")


class Client:
    """A service. Threads may share it."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Where the service is, `http://HOST:PORT`.
            key: API key, where the service asks for one.
            timeout: Seconds that one call may take, with all its retries.

        Raises:
            ClientError: `bad_url`.
        """
        self._http = httpx.Client(**http.options(url, key))
        self._timeout = timeout
        self._closed = threading.Event()

    def model(self, name: str) -> Model:
        """Return a model, by its name.

        What is known of its streams is kept in what is returned: two of them are two writers.
        """
        return Model(self, ModelExchanges(name, self._timeout))

    def close(self) -> None:
        """Close the connections."""
        self._closed.set()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, exchange: Exchange[T]) -> T:
        """Carry an exchange to its end and return its result."""
        return carry(exchange, self._send)

    def _send(self, ask: Ask) -> Reply | Lost:
        self._closed.wait(ask.wait)
        try:
            return http.reply(self._http.request(**http.request(ask)))
        except httpx.RequestError as exc:
            return http.lost(exc, self._http.base_url)


class Model:
    """A model of a service, and what is known of its streams. Threads may share it."""

    def __init__(self, client: Client, exchanges: ModelExchanges) -> None:
        """Use `Client.model`."""
        self._client = client
        self._exchanges = exchanges
        self._streams: dict[str, Stream] = {}

    def stream(self, name: str) -> Stream:
        """Return a stream, by its id; asked again, the same.

        Raises:
            ClientError: `bad_request`: no stream can have this id.
        """
        if name not in self._streams:
            self._streams.setdefault(name, Stream(self._client, self._exchanges, Place.of(name)))
        return self._streams[name]

    def step_many(self, inputs: Mapping[str, Inputs]) -> dict[str, Answer | ClientError]:
        """Move many streams by one timestep each, in one request.

        Args:
            inputs: What each stream takes, by its id; shape `(*row)` per input.

        Returns:
            An answer per stream, or the error where it failed: each stands alone. `created` is not told here.

        Raises:
            ClientError: No stream was moved, or for none is it known.
        """
        streams = [self.stream(name) for name in sorted(inputs)]  # in one order, so that no two calls lock each other
        with ExitStack() as held:
            for stream in streams:
                held.enter_context(stream._lock)
            return self._client.run(self._exchanges.move_many([stream._place for stream in streams], inputs))


class Stream:
    """A stream's handle: it remembers where the stream stands, and sends that with each step.

    The first call reads it from the service. From then on the handle goes on from its own last answer: if anybody
    else moves the stream, the next call is refused with `state_changed`, and `resume` reads it anew. After an error
    that leaves it open whether the step was applied, make the same call again: it is applied at most once.

    Attributes:
        name: The stream's id.
    """

    def __init__(self, client: Client, exchanges: ModelExchanges, place: Place) -> None:
        """Use `Model.stream`."""
        self.name = place.stream
        self._place = place
        self._lock = threading.Lock()
        self._client = client
        self._exchanges = exchanges

    def step(self, x: Inputs) -> Answer:
        """Move the stream by one timestep and return the prediction.

        Args:
            x: Shape `(*row)` per input; types are converted to the model's where no value is lost.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        return self._run(self._exchanges.move(self._place, x))

    def steps(self, xs: Inputs, returns: Returns = "all") -> Answer:
        """Move the stream by a chunk of timesteps, all or nothing.

        Args:
            xs: Shape `(T, *row)` per input.
            returns: Which predictions to answer: `all`, the `last`, or `none`.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        return self._run(self._exchanges.move(self._place, xs, returns))

    def prime(self, xs: Inputs) -> Answer:
        """Give the stream its history, without predictions: `steps` with `none`."""
        return self.steps(xs, "none")

    def reset(self) -> Answer:
        """Bring the stream back to its initial state, from where this handle stands.

        Raises:
            ClientError: As for `step`.
        """
        return self._run(self._exchanges.reset(self._place))

    def resume(self) -> int:
        """Read where the stream stands, go on from there, and return its step; 0 where there is no such stream.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        return self._run(self._exchanges.resume(self._place))

    def status(self) -> Status:
        """Return where the stream stands. The handle does not go there; `resume` does.

        Raises:
            ClientError: `stream_not_found`, or as for `step`.
        """
        return self._client.run(self._exchanges.status(self._place))

    def delete(self) -> None:
        """Forget the stream, wherever it stands; the next step begins a new one.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        self._run(self._exchanges.delete(self._place))

    def _run(self, exchange: Exchange[T]) -> T:
        with self._lock:
            return self._client.run(exchange)
