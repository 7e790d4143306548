"""`Tokens`: tokens of an identity provider, where the settings have its keys."""

from __future__ import annotations

from collections.abc import Callable

from stepwell.addons.jwt.settings import JwtSettings
from stepwell.addons.jwt.verifier import JwtVerifier
from stepwell.requests.auth.api_keys import Caller
from stepwell.service_addon import ServiceAddon


class Tokens(ServiceAddon):
    """Verifies tokens in one worker."""

    def caller_of_token(self) -> Callable[[str], Caller] | None:
        """Return what verifies them; None: there are no keys.

        Raises:
            KeysFileError: As for `JwtVerifier`.
        """
        settings = self.context.settings.of(JwtSettings)
        return JwtVerifier(settings).caller if settings.accepts_tokens else None
