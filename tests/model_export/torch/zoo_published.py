"""Zoo: how published packages write modules: outputs made beforehand, scans of their own, states changed in place."""

from __future__ import annotations

from typing import Any

from stepwell_export import StepSpec
from tests.model_export.torch.zoo_parts import ZooModule, nn, of, torch, whole

F = torch.nn.functional


def cell() -> dict[str, Any]:
    return {"input": nn.Linear(4, 5), "carried": nn.Linear(5, 5)}


def made_beforehand() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        found, h = x.new_empty(x.shape[1], x.shape[0], 5), torch.zeros(x.shape[0], 5)
        for t, timestep in enumerate(x.unbind(1)):
            h = torch.tanh(m.input(timestep) + m.carried(h))
            found[t] = h
        return found.transpose(0, 1)

    return whole(of(run, **cell()))


def read_back() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        found = torch.zeros(x.shape[0], x.shape[1] + 1, 5)
        for t in range(x.shape[1]):
            found[:, t + 1] = torch.tanh(m.input(x[:, t]) + m.carried(found[:, t]))
        return found[:, 1:]

    return whole(of(run, **cell()))


def no_state_at_first() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        keep, new, h, found = torch.sigmoid(m.keep(x)), m.new(x), None, []
        for t in range(x.shape[1]):
            h = new[:, t] if h is None else keep[:, t] * h + new[:, t]
            found.append(h)
        return torch.stack(found, 1)

    return whole(of(run, keep=nn.Linear(4, 5), new=nn.Linear(4, 5)))


def first_timestep_as_state() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h = x[:, 0]
        found = [h]
        for t in range(1, x.shape[1]):
            h = m.keep * h + (1 - m.keep) * x[:, t]
            found.append(h)
        return torch.stack(found, 1)

    return whole(of(run, keep=nn.Parameter(torch.rand(4))))


def tiny_constant() -> StepSpec:
    """Torch's optimizer takes 1e-8 for zero; without it, the timesteps before the first one are infinite."""

    def run(m: Any, x: Any) -> Any:
        y = m.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)[:, :-2]
        return (y + 1) / torch.sqrt((y * y).mean(2, keepdim=True) + 1e-8)

    return whole(of(run, conv=nn.Conv1d(4, 5, 3, padding="same", bias=False)))


class WithLengths(nn.LSTM):
    """An LSTM with an argument of its own, and something before and after the layer."""

    def forward(self, x: Any, lengths: Any, hx: Any = None) -> Any:
        """Run the sequence."""
        found, _ = super().forward(2 * x, hx)
        return found + 1 if lengths is None else found


def subclass() -> StepSpec:
    return whole(of(lambda m, x: m.rnn(x, None), rnn=WithLengths(4, 5, batch_first=True)))


def distribution() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        at = torch.distributions.Normal(m.mean(m.rnn(x)[0]), F.softplus(m.scale(x)) + 0.1)
        return at.mean, at.log_prob(torch.zeros(2))

    parts = {"rnn": nn.GRU(4, 5, batch_first=True), "mean": nn.Linear(5, 2), "scale": nn.Linear(4, 2)}
    return whole(of(run, **parts))


def changed_in_place() -> StepSpec:
    def run(m: Any, x: Any, past: Any) -> Any:
        past[:, :-1] = past[:, 1:].clone()
        past[:, -1] = x
        return m.head(past.flatten(1)), past

    states = {"past": torch.zeros(1, 3, 4)}
    return StepSpec(of(run, head=nn.Linear(12, 5)), inputs={"x": torch.randn(2, 4)}, states=states)


def copied_into() -> StepSpec:
    def run(m: Any, x: Any, past: Any) -> Any:
        past.copy_(torch.roll(past, -1, 1))
        past[:, -1] = x
        return m.head(past.flatten(1)), past

    states = {"past": torch.zeros(1, 3, 4)}
    return StepSpec(of(run, head=nn.Linear(12, 5)), inputs={"x": torch.randn(2, 4)}, states=states)


def interleaved(combine: Any, elements: Any) -> Any:
    """An associative scan, as in jax.lax.associative_scan and the packages that have copies of it."""

    def scanned(parts: Any) -> Any:
        count = parts[0].shape[1]
        if count < 2:
            return parts
        odd = scanned(combine([part[:, :-1:2] for part in parts], [part[:, 1::2] for part in parts]))
        last = [part[:, :-1] for part in odd] if count % 2 == 0 else odd
        even = combine(last, [part[:, 2::2] for part in parts])
        even = [torch.cat([part[:, :1], rest], 1) for part, rest in zip(parts, even, strict=True)]
        pads = [F.pad(part, (0, 0, 0, even[0].shape[1] - part.shape[1])) for part in odd]
        both = [torch.stack(pair, 2).flatten(1, 2) for pair in zip(even, pads, strict=True)]
        return [part[:, :count] for part in both]

    return scanned(elements)


def decayed(early: Any, late: Any) -> Any:
    return early[0] * late[0], torch.addcmul(late[1], late[0], early[1])


def own_scan() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        keep = torch.sigmoid(m.keep(x))
        return interleaved(decayed, (keep, (1 - keep) * m.new(x)))[1]

    return whole(of(run, keep=nn.Linear(4, 5), new=nn.Linear(4, 5)))


def folded_heads() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        heads = m.rnn(x)[0].unflatten(-1, (2, 3)).transpose(1, 2).flatten(0, 1)
        rows = heads.shape[0] // 2  # as in `(b h) n d -> b n (h d)` of einops
        return heads.tanh().reshape(rows, 2, -1, 3).transpose(1, 2).reshape(rows, -1, 6)

    return whole(of(run, rnn=nn.GRU(4, 6, batch_first=True)))


ZOO = {
    "own_scan": ZooModule(
        own_scan, "a function of the module's own code that is an associative scan", "h, and whether it has begun"
    ),
    "folded_heads": ZooModule(folded_heads, "heads beside the rows, which are their number divided by the heads", "h"),
    "made_beforehand": ZooModule(made_beforehand, "a loop that writes into an output made beforehand", "h"),
    "read_back": ZooModule(read_back, "a loop that reads what it has written into its output", "h"),
    "no_state_at_first": ZooModule(no_state_at_first, "a loop whose first iteration has no state", "h"),
    "first_timestep_as_state": ZooModule(
        first_timestep_as_state, "a loop whose first state is the first timestep", "h, and whether it has begun"
    ),
    "tiny_constant": ZooModule(tiny_constant, "a delayed division by a root of a sum with 1e-8", "past timesteps"),
    "subclass": ZooModule(subclass, "a subclass of nn.LSTM with arguments of its own", "h and c"),
    "distribution": ZooModule(distribution, "parameters of a torch.distributions.Normal", "h"),
    "changed_in_place": ZooModule(changed_in_place, "a state that is changed in place, by parts", "the state"),
    "copied_into": ZooModule(copied_into, "a state that is changed in place, by copy_", "the state"),
}
