"""A stand-in for the Hugging Face Hub: the requests that its own client sends, on repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tests.processes import free_port


@dataclass
class HubRepository:
    """One repository.

    Attributes:
        private: As it was created.
        files: The contents by name.
        sha: The newest commit.
        messages: The messages of all commits.
    """

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    sha: str = "0" * 40
    messages: list[str] = field(default_factory=list)


class StandInHub:
    """The Hub.

    Attributes:
        url: Its address.
        repositories: The repositories by id.
        token: The token that every request needs.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.repositories: dict[str, HubRepository] = {}
        self.app = FastAPI()
        route = self.app.api_route
        route("/api/repos/create", methods=["POST"])(self.create)
        route("/api/validate-yaml", methods=["POST"])(self.validate)
        route("/api/models/{owner}/{name}/preupload/{revision}", methods=["POST"])(self.preupload)
        route("/api/models/{owner}/{name}/commit/{revision}", methods=["POST"])(self.commit)
        route("/api/models/{owner}/{name}/revision/{revision}", methods=["GET"])(self.info)
        route("/api/models/{owner}/{name}", methods=["GET"])(self.info)
        route("/{owner}/{name}/resolve/{revision}/{file}", methods=["GET", "HEAD"])(self.resolve)

    async def create(self, request: Request) -> Any:
        if not self._is_known(request):
            return Response("Invalid username or password.", 401)
        body = await request.json()
        repository = f"{body['organization']}/{body['name']}"
        if repository in self.repositories:
            return JSONResponse({"error": "It is there", "url": f"{self.url}/{repository}"}, 409)
        self.repositories[repository] = HubRepository(
            body.get("visibility") == "private" or body.get("private") is True
        )
        return {"url": f"{self.url}/{repository}", "id": repository, "name": repository}

    async def validate(self, request: Request) -> Any:
        body = await request.json()
        errors = [] if body["content"].startswith("---\n") else [{"message": "the card has no fields"}]
        return {"errors": errors, "warnings": []}

    async def preupload(self, request: Request) -> Any:
        files = (await request.json())["files"]
        return {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]}

    async def commit(self, owner: str, name: str, request: Request) -> Any:
        repository = self.repositories[f"{owner}/{name}"]
        content = await request.body()
        for line in content.splitlines():
            item = json.loads(line)
            if item["key"] == "header":
                repository.messages.append(item["value"]["summary"])
            else:
                repository.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        repository.sha = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return {
            "commitUrl": f"{self.url}/{owner}/{name}/commit/{repository.sha}",
            "commitOid": repository.sha,
            "pullRequestUrl": None,
        }

    async def info(self, owner: str, name: str, request: Request) -> Any:
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None or not self._is_known(request):
            return Response(
                "{}", 401, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        return {
            "id": f"{owner}/{name}",
            "sha": repository.sha,
            "private": repository.private,
            "tags": [],
            "siblings": [{"rfilename": each} for each in repository.files],
        }

    async def resolve(self, owner: str, name: str, file: str) -> Any:
        repository = self.repositories[f"{owner}/{name}"]
        headers = {"X-Repo-Commit": repository.sha}
        if file not in repository.files:
            return Response(None, 404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        content = repository.files[file]
        etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return Response(content, headers={**headers, "ETag": f'"{etag}"'}, media_type="application/octet-stream")

    def _is_known(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.token}"


@contextmanager
def stand_in_hub(token: str) -> Iterator[StandInHub]:
    """Run a hub on a port of this machine."""
    port = free_port()
    hub = StandInHub(f"http://127.0.0.1:{port}", token)
    started = threading.Event()
    config = uvicorn.Config(hub.app, host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    hub.app.router.on_startup.append(started.set)
    thread = threading.Thread(target=server.run, name="stand-in-hub")
    thread.start()
    assert started.wait(20)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(20)
