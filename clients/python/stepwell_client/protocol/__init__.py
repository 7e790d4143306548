"""The client's protocol: requests, retries and resends as generators, without network access."""
