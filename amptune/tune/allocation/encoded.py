"""Points as rows of small integers, so that thousands of them are priced at once.

A row holds the position of each choice's value, in the order of ``Space.choices``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from amptune.core.choice import BF16, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.tables import EDGE_FORMATS
from amptune.tune.allocation.allocate import Link, Problem
from amptune.tune.allocation.costmodel import LAYOUT, TF32, CostModel
from amptune.tune.choices.space import FOLLOW
from amptune.tune.prices.losses import PLAIN_LOSS

LOSS_CHOICE = ":loss"
_FORMAT_INDEX = {number_format: index for index, number_format in enumerate(EDGE_FORMATS)}
_FP32, _BF16, _FP16 = (_FORMAT_INDEX[f] for f in (Format.FP32, Format.BF16, Format.FP16))

UNPRICED_SHARE = 0.05
"""Share of a TF32 flag's uncertainty that stays where no product with a price is in FP32: a forward may have others."""

Row = np.ndarray
Rows = np.ndarray


class Encoding:
    """The rows of one cost model's space.

    Attributes:
        model: the cost model.
        names: names of the choices, in the order of a row.
        values: values of each choice.
        pairs: columns of module groups that a tensor links, each pair once.
    """

    def __init__(self, model: CostModel) -> None:
        self.model = model
        choices = model.space.choices()
        self.names = tuple(choices)
        self.values = tuple(choices.values())
        self.sizes = np.array([len(values) for values in self.values])
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._position = [{value: index for index, value in enumerate(values)} for values in self.values]
        column = {name: index for index, name in enumerate(self.names)}
        self._groups = [group.name for group in model.space.module_groups()]
        self._columns = np.array([column[name] for name in self._groups], dtype=int)
        self._of_group = {name: index for index, name in enumerate(self._groups)}
        self._formats = np.zeros((len(self._groups), max(self.sizes, default=1)), dtype=np.int8)
        for index, name in enumerate(self._groups):
            for position, label in enumerate(choices[name]):
                self._formats[index, position] = _FORMAT_INDEX[Choice.parse(label).output_format]
        self._loss = column.get(LOSS_CHOICE)
        self._whole = {name: column[name] for name in (LAYOUT, TF32, LOSS_CHOICE) if name in column}
        self.pairs = self._linked()

    def encode(self, point: Mapping[str, str]) -> Row:
        """The row of a point."""
        return np.array([self._position[i][point[name]] for i, name in enumerate(self.names)], dtype=np.int16)

    def rows(self, points: Iterable[Mapping[str, str]]) -> Rows:
        """The rows of some points."""
        rows = [self.encode(point) for point in points]
        return np.array(rows, dtype=np.int16).reshape(len(rows), len(self.names))

    def decode(self, row: Row) -> dict[str, str]:
        """The point of a row."""
        return {name: self.values[i][int(row[i])] for i, name in enumerate(self.names)}

    def one_hot(self, rows: Rows) -> np.ndarray:
        """One column for each value of each choice: 1 where the row has it."""
        found = np.zeros((len(rows), self.starts[-1]))
        np.put_along_axis(found, rows + self.starts[:-1], 1.0, axis=1)
        return found

    def weighed(self, rows: Rows) -> np.ndarray:
        """The same, with the flag of TF32 by how much of what it is for each row leaves in FP32.

        The flag of a plan that has no product in FP32 changes nothing, or a product that has no price.
        """
        found = self.one_hot(rows)
        if TF32 in self._whole:
            column = self._whole[TF32]
            total = self._by_tf32.sum()
            left = self._by_tf32[rows + self.starts[:-1]].sum(axis=1) / total if total else np.zeros(len(rows))
            share = UNPRICED_SHARE + (1 - UNPRICED_SHARE) * left
            found[:, self.starts[column] : self.starts[column + 1]] *= share[:, None]
        return found

    def formats(self, rows: Rows) -> np.ndarray:
        """Position in ``EDGE_FORMATS`` of each module group's output format."""
        found: np.ndarray = self._formats[np.arange(len(self._groups)), rows[:, self._columns]]
        return found

    def milliseconds(self, rows: Rows) -> np.ndarray:
        """What ``CostModel.predicted`` says of each row; infinite where something has no kernel."""
        found = np.empty(len(rows))
        # Rows are priced together that have the same layout, TF32 flag and loss.
        keys = rows[:, list(self._whole.values())]
        for key in set(map(tuple, keys.tolist())):
            chosen = (keys == key).all(axis=1)
            found[chosen] = self._mode(key).milliseconds(rows[chosen])
        return found + self.model.table.scaling * self.is_scaled(rows)

    @functools.cached_property
    def on_the_host(self) -> Encoding:
        """The same rows, priced by what Python takes to queue their casts."""
        return Encoding(self.model.on_the_host())

    def is_scaled(self, rows: Rows) -> np.ndarray:
        """Whether something is in FP16 in each row, so that its loss is scaled."""
        found: np.ndarray = (self.formats(rows) == _FP16).any(axis=1)
        return found

    def errors(self) -> np.ndarray:
        """Table error of each column of ``one_hot``."""
        return self._per_value(self.model.problem().errors)

    def columns_of(self, of_group: Mapping[str, Iterable[Choice]]) -> np.ndarray:
        """By column of ``one_hot``, whether it is one of these choices."""
        return self._per_value({name: dict.fromkeys(choices, 1.0) for name, choices in of_group.items()}) > 0

    def columns_with(self, choices: Collection[tuple[str, str]]) -> np.ndarray:
        """By column of ``one_hot``, whether it is one of these names and values."""
        columns = zip(self.names, self.values, strict=True)
        return np.array([(name, value) in choices for name, values in columns for value in values], bool)

    @functools.cached_property
    def risky(self) -> np.ndarray:
        """By column of ``one_hot``, whether it rounds more than its alternatives: a group's format other than FP32, an
        op or a loss that follows its input, TF32."""
        groups = self.model.space.module_groups()
        found = self.columns_of({group.name: set(group.choices) - {FP32} for group in groups})
        columns = zip(self.names, self.values, strict=True)
        found |= np.array([v == FOLLOW or (name, v) == (TF32, "on") for name, values in columns for v in values], bool)
        return found

    @functools.cached_property
    def of_fp8(self) -> np.ndarray:
        """By column of ``one_hot``, whether it is a group's choice of FP8."""
        groups = self.model.space.module_groups()
        return self.columns_of({group.name: {c for c in group.choices if c.format.is_fp8} for group in groups})

    def alike(self) -> np.ndarray:
        """By column of ``one_hot``, one column for each two or more choices of a group that run much the same kernels:
        in 16 bits, and in FP8."""
        found = []
        for group in self.model.space.module_groups():
            low = [choice for choice in group.choices if choice != FP32]
            for some in ([c for c in low if c.format.is_fp8], [c for c in low if not c.format.is_fp8]):
                if len(some) > 1:
                    found.append(self.columns_of({group.name: some}).astype(float))
        return np.array(found).reshape(len(found), self.starts[-1]).T

    def bytes(self, rows: Rows) -> np.ndarray:
        """What ``CostModel.bytes`` says of each row."""
        found: np.ndarray = self.one_hot(rows) @ self._bytes
        return found

    def is_legal(self, rows: Rows) -> np.ndarray:
        """Whether FP16 and BF16 meet nowhere and no loss is computed in FP16."""
        formats = self.formats(rows)
        legal = np.ones(len(rows), dtype=bool)
        for columns in self._meets:
            some = formats[:, columns]
            legal &= ~((some == _FP16).any(axis=1) & (some == _BF16).any(axis=1))
        if self._loss is not None and FOLLOW in self.values[self._loss] and len(self._arriving):
            follows = rows[:, self._loss] == self._position[self._loss][FOLLOW]
            legal &= ~(follows & (formats[:, self._arriving] == _FP16).any(axis=1))
        return legal

    def single_changes(self, rows: Rows) -> np.ndarray:
        """For each row, every one that differs in one choice, and those in which all groups that meet change their
        16-bit format together: rows x changes x choices. The row itself is among them."""
        columns, values = self._singles
        changed = np.repeat(rows[:, None], len(columns), axis=1)
        changed[:, np.arange(len(columns)), columns] = values
        swapped = [np.stack([self._other_half(row, groups) for row in rows])[:, None] for groups in self._meeting]
        return np.concatenate([changed, *swapped], axis=1)

    def pair_changes(self, rows: Rows, rng: np.random.Generator | None = None, limit: int = 0) -> np.ndarray:
        """For each row, every one in which two linked groups take one choice together: rows x changes x choices.

        With ``rng``, ``limit`` of them at most, drawn at random.
        """
        columns, values = self._doubles
        if rng is not None and len(columns) > limit:
            some = rng.choice(len(columns), limit, replace=False)
            columns, values = columns[some], values[some]
        changed = np.repeat(rows[:, None], len(columns), axis=1)
        for side in range(2):
            changed[:, np.arange(len(columns)), columns[:, side]] = values[:, side]
        return changed

    @functools.cached_property
    def _singles(self) -> tuple[np.ndarray, np.ndarray]:
        changes = [(column, value) for column, size in enumerate(self.sizes) for value in range(size)]
        columns, values = np.array(changes, dtype=int).reshape(len(changes), 2).T
        return columns, values

    @functools.cached_property
    def _doubles(self) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for a, b in self.pairs:
            i, j = self._columns[a], self._columns[b]
            for label, value in self._position[i].items():
                if (other := self._position[j].get(label)) is not None:
                    found.append(((i, j), (value, other)))
        changes = np.array(found, dtype=int).reshape(len(found), 2, 2)
        return changes[:, 0], changes[:, 1]

    def _other_half(self, row: Row, columns: np.ndarray) -> Row:
        """The row with BF16 for FP16 in these groups, or the other way round; FP32 where the other is not offered."""
        formats = self.formats(row[None])[0][columns]
        half, label = (_FP16, BF16.label) if (formats == _FP16).any() else (_BF16, FP16.label)
        changed = row.copy()
        for group in columns[formats == half]:
            column = self._columns[group]
            changed[column] = self._position[column].get(label, self._position[column][FP32.label])
        return changed

    def _per_value(self, of_group: Mapping[str, Mapping[Choice, float]]) -> np.ndarray:
        found = np.zeros(self.starts[-1])
        for name, values in of_group.items():
            column = self.names.index(name)
            for choice, value in values.items():
                found[self.starts[column] + self._position[column][choice.label]] = value
        return found

    @functools.cached_property
    def _by_tf32(self) -> np.ndarray:
        """Milliseconds that TF32 saves by column of ``one_hot``: those of groups in FP32."""
        exact, fast = (self._per_value(self.model.problem_at({TF32: flag}).times) for flag in ("off", "on"))
        known = np.isfinite(exact) & np.isfinite(fast)
        saved = np.subtract(exact, fast, out=np.zeros(len(exact)), where=known)
        found: np.ndarray = np.maximum(0.0, saved)
        return found

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        return self._per_value(self.model.problem().memory)

    @functools.cached_property
    def _meets(self) -> list[np.ndarray]:
        return [np.array(sorted(self._of_group[name] for name in names)) for names in self.model.space.meets]

    @functools.cached_property
    def _meeting(self) -> list[np.ndarray]:
        """Groups that meet one another, directly or through others."""
        found: list[set[str]] = []
        for names in self.model.space.meets:
            touching = [s for s in found if s & names]
            found = [s for s in found if not s & names] + [set(names).union(*touching)]
        return [np.array(sorted(self._of_group[name] for name in names)) for names in found]

    @functools.cached_property
    def _arriving(self) -> np.ndarray:
        """Module groups whose outputs the loss reads."""
        return np.array(sorted(self._of_group[name] for name in self.model.loss_sources()), dtype=int)

    def _linked(self) -> np.ndarray:
        pairs = {
            tuple(sorted((self._of_group[a], self._of_group[b])))
            for link in self.model.problem().links
            for a, b in itertools.product(link.sources - {INPUT}, link.into - {INPUT})
            if a != b
        }
        return np.array(sorted(pairs), dtype=int).reshape(len(pairs), 2)

    def _mode(self, key: tuple[int, ...]) -> _Mode:
        if key not in self._modes:
            chosen = zip(self._whole.items(), key, strict=True)
            point = {name: self.values[column][value] for (name, column), value in chosen}
            self._modes[key] = _Mode(self, self.model.problem_at(point), point.get(LOSS_CHOICE, PLAIN_LOSS))
        return self._modes[key]

    @functools.cached_property
    def _modes(self) -> dict[tuple[int, ...], _Mode]:
        return {}


class _Mode:
    """The costs in one layout and with one choice for the loss."""

    def __init__(self, encoding: Encoding, problem: Problem, loss: str) -> None:
        self.encoding = encoding
        self.times = encoding._per_value(problem.times)
        sides = list(dict.fromkeys(side for link in problem.links for side in (link.sources, link.into)))
        self.position = {side: index for index, side in enumerate(sides)}
        self.columns = [np.array(sorted(encoding._of_group[n] for n in side - {INPUT}), dtype=int) for side in sides]
        own = [index for index, side in enumerate(sides) if INPUT not in side]
        self.alone = [index for index in own if len(self.columns[index]) == 1]
        self.joined = [index for index in own if len(self.columns[index]) > 1]
        self.sources = np.array([self.position[link.sources] for link in problem.links], dtype=int)
        self.into = np.array([self.position[link.into] for link in problem.links], dtype=int)
        self.prices = np.array([_matrix(link) for link in problem.links]).reshape(len(problem.links), 3, 3)
        model = encoding.model
        self.losses = np.array([model.loss_ms(loss, f) for f in (Format.FP32, Format.BF16)])

    def milliseconds(self, rows: Rows) -> np.ndarray:
        formats = self.encoding.formats(rows)
        total = self.times[rows + self.encoding.starts[:-1]].sum(axis=1)
        if len(self.sources):
            sides = self._sides(formats)
            index = np.arange(len(self.sources))
            total = total + self.prices[index, sides[:, self.sources], sides[:, self.into]].sum(axis=1)
        arriving = self.encoding._arriving
        is_low = (formats[:, arriving] != _FP32).all(axis=1) if len(arriving) else np.zeros(len(rows), dtype=bool)
        found: np.ndarray = total + self.losses[is_low.astype(int)]
        return found

    def _sides(self, formats: np.ndarray) -> np.ndarray:
        """The format of each side of the links: what its groups' outputs promote to."""
        sides = np.zeros((len(formats), len(self.columns)), dtype=formats.dtype)
        sides[:, self.alone] = formats[:, [self.columns[i][0] for i in self.alone]]
        for index in self.joined:
            some = formats[:, self.columns[index]]
            first = some[:, 0]
            sides[:, index] = np.where((some == first[:, None]).all(axis=1), first, _FP32)
        return sides


def _matrix(link: Link) -> list[list[float]]:
    return [[0.0 if a is b else link.prices.get(frozenset((a, b)), 0.0) for b in EDGE_FORMATS] for a in EDGE_FORMATS]
