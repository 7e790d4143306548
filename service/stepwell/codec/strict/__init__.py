"""The strict path of decoding: it accepts what the fast path accepts, and reports what is wrong with the rest."""
