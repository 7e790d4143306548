"""`FastPath`: the protocols of connections with the fast path."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from stepwell.service_addon import ServiceAddon

if TYPE_CHECKING:
    from stepwell.protocols import Protocols
    from stepwell.requests.hot_routes import HotRoute


class FastPath(ServiceAddon):
    """Handles frequent requests of one worker, unless `STEPWELL_FAST_LANE` is off."""

    def protocols(self, routes: Iterable[HotRoute]) -> Protocols | None:
        """Return the classes of connections; None: the fast path is off."""
        if os.environ.get("STEPWELL_FAST_LANE") == "off":
            return None
        from stepwell.addons.fast_path.fast_feed import fast_feed_class
        from stepwell.addons.fast_path.fast_http import fast_http_class
        from stepwell.protocols import Protocols

        return Protocols(fast_http_class(self.context, routes), fast_feed_class(self.context))
