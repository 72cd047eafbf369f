"""What came of a training job, in the hands of a program: predicts, explains, can be kept in a file.

model = await job.model()                 or Model.load("income.zkd")
model.predict({"age": [31], "hours": [40]})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zkd.errors import BadTraining
from zkd.models.trained import Trained

if TYPE_CHECKING:
    from zkd.jobs import Job, Round, Summary
    from zkd.models.rows import Array
    from zkd.models.survey import Label
    from zkd.models.trained import Coefficient

Given = Any  # columns by name, such as `Dataset.read` gives, or rows x features


class Model:
    """`data` is the file of a model. Raises `BadRecord` for other bytes.

    Rows are given as columns by name (a mapping, a data frame, a table of Arrow), of which there may be more than it
    takes, or as an array of rows x features in the order of `names`; what does not fit is a `BadTraining`. `trained`
    has all that is in the file.
    """

    def __init__(self, data: bytes) -> None:
        self.trained = Trained.read(data)
        self._data = data

    def __repr__(self) -> str:
        return f"<Model {self.job.model} of {self.target} on {self.dataset}, {self.summary.reason}>"

    # --- Rows ---------------------------------------------------------------------------------------------

    def predict(self, rows: Given) -> Array:
        """The label that is most likely for each row, or the number that is expected, (n,)."""
        return self.trained.predict(_by_name(rows))

    def probabilities(self, rows: Given) -> Array:
        """Of each class, in the order of `classes`, (n, classes). Raises `BadTraining` where there are none."""
        return self.trained.probabilities(_by_name(rows))

    def scores(self, rows: Given) -> Array:
        """What comes before probabilities or rates, (n, outputs)."""
        return self.trained.scores(_by_name(rows))

    def attributions(self, rows: Given, label: Label | None = None) -> tuple[Array, float]:
        """How much each feature moved each row's score from that of the mean row, (n, features), and that score.

        Scores of softmax and nets are those of `label`, one of `classes`, by default of the first.
        """
        if label is not None and label not in self.classes:
            raise BadTraining(f"label: expected one of {', '.join(map(str, self.classes))}, got {label!r}")
        output = self.classes.index(label) if label is not None and self.trained.model.outputs > 1 else 0
        return self.trained.attributions(_by_name(rows), output=output)

    # --- What it is ---------------------------------------------------------------------------------------

    @property
    def summary(self) -> Summary:
        """Why it ended, its losses, how far it is from the optimum at most, notes."""
        return self.trained.summary

    @property
    def history(self) -> Sequence[Round]:
        """All rounds over all rows."""
        return self.trained.rounds

    def coefficients(self) -> list[Coefficient]:
        """A line for each feature of each output, the largest standardised ones first; none of a net."""
        return self.trained.table()

    @property
    def importance(self) -> Mapping[str, float]:
        """How much the mean loss rises with a feature shuffled, the largest first; empty if that was not asked for."""
        found = self.trained.importance
        if found is None:
            return {}
        pairs = zip(self.names, found.rise.tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    @property
    def job(self) -> Job:
        return self.trained.terms

    @property
    def dataset(self) -> str:
        """NAME@VERSION"""
        return self.trained.dataset

    @property
    def target(self) -> str:
        return self.trained.target

    @property
    def classes(self) -> tuple[Label, ...]:
        """The labels, in order; empty where numbers are fitted."""
        return self.trained.classes

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features; ``pixels[3]`` is the fourth of a column that has several a row."""
        return self.trained.names

    # --- Files --------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the file: arrays in the layout of safetensors, the rest as JSON within."""
        Path(path).write_bytes(self._data)

    @classmethod
    def load(cls, path: str | Path) -> Model:
        return cls(Path(path).read_bytes())

    def plot(self, path: str | Path) -> None:
        """Write the curve of the losses as SVG."""
        from zkd.client.curve import draw

        title = f"{self.job.model} on {self.dataset}, target {self.target}"
        ending = f"{self.summary.reason} after {self.summary.rounds} rounds"
        Path(path).write_text(draw(self.history, title, ending=ending))


def _by_name(rows: Given) -> Given:
    """The columns of a frame by their names: their order is not the model's."""
    if isinstance(rows, Mapping):
        return rows
    names = getattr(rows, "column_names", None) or getattr(rows, "columns", None)
    return rows if names is None else {name: rows[name] for name in names}
