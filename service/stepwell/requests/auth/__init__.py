"""Who a request is from, and what it may do: API keys, tokens, and the first message of a socket."""
