"""Codecs: request bodies to arrays and predictions to bytes, in JSON and msgpack, for HTTP, WebSocket and the client.

`RequestDecoder` decodes request bodies for one model; `responses` builds the responses.

To add an optional field to a step:

1. `codec/step_bodies.py`: a field of `StepOptions`, with the default `UNSET` and its type, bounds and description in
   `Annotated[.., Meta(..)]`. All bodies and messages that step streams then accept it, in JSON and in msgpack, invalid
   values are rejected with the field, the value and what was expected, and OpenAPI describes it.
2. `types/steps.py`: a field of `RequestFields` with the same name and its default, and a condition in
   `Timestep.can_coalesce` if it changes what a timestep does. Each `Timestep` and `BulkTimesteps` then has its value.
3. `engine/`: where it has its effect. `engine/protocol/op_ids.py`, if requests that differ in it are not the same.
   `BatchedVersion.submit_bulk`, if a batch of columns cannot have it.
4. `client/protocol/steps.py`: if the Python client sends it.

A field that differs from stream to stream, as `seq` does, is a field of `StepBody` and a column of `BulkBody` instead,
and a field of `Timestep` and a column of `BulkTimesteps`.
"""
