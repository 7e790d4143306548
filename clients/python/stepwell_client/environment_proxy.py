"""The proxy that the environment names for a URL (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from urllib.request import getproxies

import httpx2


def environment_proxy(url: httpx2.URL) -> str | None:
    """Return the proxy's URL, or None: connect directly. A client of httpx2 without a transport chooses the same."""
    environment = getproxies()
    proxy = environment.get(url.scheme) or environment.get("all")
    excluded = (entry.strip() for entry in environment.get("no", "").split(","))
    if not proxy or any(_is_excluded(url, entry) for entry in excluded if entry):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_excluded(url: httpx2.URL, entry: str) -> bool:
    """Return whether an entry of `NO_PROXY` excludes a URL: `*`, a network, or a name with or without its port."""
    if entry == "*":
        return True
    try:
        return ip_address(url.host) in ip_network(entry, strict=False)
    except ValueError:  # one of them is a name
        pass
    has_scheme = "://" in entry
    if "/" in entry and not has_scheme:
        return False
    is_exact = has_scheme or entry.startswith("[") or entry.lower() == "localhost"
    only_below = entry.startswith((".", "*."))  # `.steps.example` is not `steps.example` itself
    name = entry.removeprefix("*").removeprefix(".") if only_below else entry
    try:
        named = httpx2.URL(name if has_scheme else f"all://{name}")
    except httpx2.InvalidURL:
        return False
    if not named.host or named.scheme not in {"all", url.scheme} or named.port not in {None, url.port}:
        return False
    is_below = not is_exact and url.host.endswith(f".{named.host}")
    return is_below or (not only_below and url.host == named.host)
