"""The strict path of decoding: it accepts what the fast path accepts, and says what is wrong with the rest."""
