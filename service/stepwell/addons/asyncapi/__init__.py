"""The AsyncAPI document, which describes the WebSockets."""
