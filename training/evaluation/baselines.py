"""Baselines behind one interface: ``fit(df, schema, seed)``, then ``sample(n)``."""

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from difflm.training.evaluation.tables import EvaluationError, TableSpec


class BaselineUnavailableError(ImportError):
    """A baseline's package is not installed; the message says what to install."""


class NotFittedError(RuntimeError):
    """``sample`` was called before ``fit``."""


def require(module: str, package: str) -> Any:
    """Import a baseline's package.

    Raises
    ------
    BaselineUnavailableError
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BaselineUnavailableError(
            f"this baseline needs {package} ({error}): pip install difflm[baselines]"
        ) from error


class Baseline(ABC):
    """A generator of tables.

    Parameters
    ----------
    budget_minutes
        Time limit of ``fit``; None for no limit. Fits of iterated learners stop at it, the others take seconds.
    """

    name = ""

    def __init__(self, budget_minutes: float | None = None) -> None:
        self.budget_minutes = budget_minutes
        self.details: dict[str, Any] = {}
        self._table: pd.DataFrame | None = None
        self.schema: TableSpec | None = None
        self.seed = 0

    @property
    def table(self) -> pd.DataFrame:
        """The rows that were fitted.

        Raises
        ------
        NotFittedError
            ``fit`` was not called.
        """
        if self._table is None:
            raise NotFittedError(f"{type(self).__name__}: call fit first")
        return self._table

    @property
    def spec(self) -> TableSpec:
        """What the columns are."""
        if self.schema is None:
            raise NotFittedError(f"{type(self).__name__}: call fit first")
        return self.schema

    def fit(self, table: pd.DataFrame, schema: TableSpec, seed: int = 0) -> "Baseline":
        """Learn a table.

        Parameters
        ----------
        table
            Training rows.
        schema
            What the columns are.
        seed
            Of everything random, in fitting and in sampling.
        """
        if table.empty:
            raise EvaluationError("cannot fit a table without rows")
        self._table, self.schema, self.seed = table.reset_index(drop=True), schema, seed
        self._fit()
        return self

    @abstractmethod
    def _fit(self) -> None:
        """Learn ``self.table``."""

    @abstractmethod
    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows with the columns of the training table."""

    def _deadline(self) -> float:
        return float("inf") if self.budget_minutes is None else time.monotonic() + 60 * self.budget_minutes


class Real(Baseline):
    """Training rows themselves, the upper bound: all of them in order, more by drawing again."""

    name = "real"

    def _fit(self) -> None:
        pass

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Return the first rows; beyond the table's length, rows drawn with replacement."""
        rows = self.table.iloc[:num_samples]
        more = num_samples - len(rows)
        if more > 0:
            rows = pd.concat([rows, self.table.sample(more, replace=True, random_state=self.seed)], ignore_index=True)
        return rows.reset_index(drop=True)


class Independent(Baseline):
    """Each column drawn from its own values, without regard to the others: perfect shapes, no dependence."""

    name = "independent"

    def _fit(self) -> None:
        pass

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw every cell of a column with replacement."""
        columns = enumerate(self.table.columns)
        drawn = {
            name: self.table[name]
            .sample(num_samples, replace=True, random_state=np.random.RandomState([self.seed, place]))
            .reset_index(drop=True)
            for place, name in columns
        }
        return pd.DataFrame(drawn)


def _filled(table: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """Prepared rows without missing cells: the median, and a category of their own."""
    from difflm.training.evaluation.tables import prepare

    rows = prepare(table, spec, "the training table")
    for name in spec.numerical:
        middle = rows[name].median()
        rows[name] = rows[name].fillna(middle if np.isfinite(middle) else 0.0)
    rows[list(spec.categorical)] = rows[list(spec.categorical)].fillna("\0missing")
    return rows


def restore(rows: pd.DataFrame, table: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """Give sampled rows the look of the training table: its columns, decimals and range, missing categories."""
    result = {}
    for name in table.columns:
        values = rows[name].reset_index(drop=True)
        if name in spec.numerical:
            real = table[name].dropna().astype(float)
            values = pd.to_numeric(values, errors="coerce").astype(float)
            if len(real):
                texts = real.head(2000).map(lambda number: np.format_float_positional(number, trim="-"))
                decimals = max(len(text.partition(".")[2]) for text in texts)
                values = values.round(decimals).clip(real.min(), real.max())
        else:
            values = values.map(lambda value: None if value == "\0missing" else value)
        result[name] = values
    return pd.DataFrame(result)


class Smote(Baseline):
    """imbalanced-learn's SMOTENC: rows between a row and one of its nearest neighbours of the same class.

    A regression's target is binned at its quintiles into classes, and interpolated like every other number. Tables
    without categories use SMOTE. Missing numbers are filled with the median.
    """

    name = "smote"
    neighbours = 5

    def _fit(self) -> None:
        self._over = require("imblearn.over_sampling", "imbalanced-learn")
        if self.spec.target is None:
            raise EvaluationError("smote needs a target")
        rows = _filled(self.table, self.spec)
        if self.spec.task == "regression":
            rows = rows[self.table[self.spec.target].notna().to_numpy()]
            classes = pd.qcut(rows[self.spec.target], 5, labels=False, duplicates="drop").astype(str)
        else:
            classes = rows.pop(self.spec.target)
        counts = classes.value_counts()
        kept = counts.index[counts > self.neighbours]
        if not len(kept):
            raise EvaluationError(f"smote: every class has fewer rows than {self.neighbours} neighbours")
        self.details["left_out_classes"] = sorted(set(counts.index) - set(kept))
        self._rows = rows[classes.isin(kept)].reset_index(drop=True)
        self._classes = classes[classes.isin(kept)].reset_index(drop=True)

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw new rows; classes keep their shares."""
        counts = self._classes.value_counts()
        wanted = (counts / counts.sum() * num_samples).astype(int)
        wanted.iloc[0] += num_samples - int(wanted.sum())
        strategy = {name: int(counts[name] + wanted[name]) for name in counts.index}
        if len(counts) == 1:
            # SMOTE insists on two classes: add a dummy one that gets no new rows.
            raise EvaluationError("smote needs two classes with enough rows")
        places = [place for place, name in enumerate(self._rows.columns) if name in self.spec.categorical]
        options = {"sampling_strategy": strategy, "random_state": self.seed, "k_neighbors": self.neighbours}
        sampler = self._over.SMOTENC(places, **options) if places else self._over.SMOTE(**options)
        rows, classes = sampler.fit_resample(self._rows, self._classes)
        new = rows.iloc[len(self._rows) :].copy()
        if self.spec.task != "regression":
            new[self.spec.target] = classes.iloc[len(self._rows) :]
        new = new.sample(frac=1.0, random_state=self.seed)
        return restore(new, self.table, self.spec)


class GaussianCopula(Baseline):
    """copulas' Gaussian copula over empirical quantiles; a category is a number by SDV's uniform encoding.

    A category becomes a random number within its share of the unit interval, the commonest first; the marginals are
    the training table's own quantiles.
    """

    name = "gaussian_copula"

    def _fit(self) -> None:
        multivariate = require("copulas.multivariate", "copulas")
        rows, generator = _filled(self.table, self.spec), np.random.default_rng([self.seed, 1])
        self._cuts: dict[str, tuple[list[str], Any]] = {}
        encoded = {}
        for name in self.spec.columns:
            if name in self.spec.numerical:
                encoded[name] = (rows[name].rank(method="first") - 0.5) / len(rows)
                continue
            shares = rows[name].value_counts(normalize=True)
            edges = np.concatenate([[0.0], np.cumsum(shares.to_numpy())])
            place = rows[name].map({value: index for index, value in enumerate(shares.index)}).to_numpy()
            encoded[name] = pd.Series(edges[place] + generator.random(len(rows)) * (edges[place + 1] - edges[place]))
            self._cuts[name] = (list(shares.index), edges)
        # On uniform columns the library has only the dependence left to learn.
        self._model = multivariate.GaussianMultivariate(
            distribution="copulas.univariate.uniform.UniformUnivariate", random_state=self.seed
        )
        self._model.fit(pd.DataFrame(encoded))
        self._filled = rows

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows."""
        uniform = self._model.sample(num_samples).clip(0.0, 1.0 - 1e-9)
        rows = {}
        for name in self.spec.columns:
            if name in self._cuts:
                names, edges = self._cuts[name]
                place = np.clip(np.searchsorted(edges, uniform[name], side="right") - 1, 0, len(names) - 1)
                rows[name] = pd.Series([names[index] for index in place])
            else:
                rows[name] = pd.Series(np.quantile(self._filled[name], uniform[name]))
        return restore(pd.DataFrame(rows), self.table, self.spec)


class _Ctgan(Baseline):
    """CTGAN or TVAE of the ctgan package, trained in the time given (or 300 epochs, the authors' choice).

    The first epochs tell how long one takes; the number that fits into the budget is then trained from scratch, with
    the same seed.
    """

    epochs = 300

    def _model(self, epochs: int) -> Any:
        synthesizer = getattr(require("ctgan", "ctgan"), type(self).__name__)
        model = synthesizer(epochs=epochs)
        model.set_random_state(self.seed)
        return model

    def _fit(self) -> None:
        rows = _filled(self.table, self.spec)
        names = list(self.spec.categorical)
        epochs = self.epochs
        if self.budget_minutes is not None:
            deadline = self._deadline()
            seconds = []
            for trial in (1, 2):
                started = time.monotonic()
                self._model(trial).fit(rows, names)
                seconds.append(time.monotonic() - started)
            each = max(seconds[1] - seconds[0], 1e-3)
            # What is done once (the columns' mixtures) is in the first trial.
            left = deadline - time.monotonic() - max(seconds[0] - each, 0.0)
            epochs = int(min(self.epochs, max(1, 0.95 * left / each)))
        self.details["epochs"] = epochs
        self._fitted = self._model(epochs)
        self._fitted.fit(rows, names)

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows."""
        return restore(self._fitted.sample(num_samples), self.table, self.spec)


class CTGAN(_Ctgan):
    """Conditional GAN (Xu et al. 2019, arXiv 1907.00503)."""

    name = "ctgan"


class TVAE(_Ctgan):
    """Variational autoencoder of the same paper."""

    name = "tvae"


def baselines() -> dict[str, Callable[..., Baseline]]:
    """Name to class of every baseline."""
    from difflm.training.evaluation.language_baselines import FineTunedLM, GReaT, InContext

    classes: tuple[type[Baseline], ...] = (
        Real, Independent, Smote, GaussianCopula, CTGAN, TVAE, GReaT, InContext, FineTunedLM,
    )  # fmt: skip
    return {one.name: one for one in classes}
