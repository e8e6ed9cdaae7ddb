"""Baselines behind one interface: ``fit(df, schema, seed)``, then ``sample(n)``."""

import importlib
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from difflm.errors import DiffLMError
from difflm.training.evaluation.tables import (
    MISSING,
    EvaluationError,
    TableSpec,
    canonical_text,
    prepare,
    with_plain_names,
)


class BaselineUnavailableError(DiffLMError, ImportError):
    """A baseline's package is not installed; the message says what to install."""


class NotFittedError(DiffLMError, RuntimeError):
    """``sample`` was called before ``fit``."""


def require(module: str, package: str, remedy: str = "pip install difflm[baselines]") -> Any:
    """Import a baseline's package, which ``remedy`` installs.

    Raises
    ------
    BaselineUnavailableError
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BaselineUnavailableError(f"this baseline needs {package} ({error}): {remedy}") from error


class Baseline(ABC):
    """A generator of tables.

    Parameters
    ----------
    budget_minutes
        Time limit of ``fit``; None for no limit. Fits of iterated learners stop at it, the others take seconds.
    sample_minutes
        Time limit of ``sample``, for the language models, which then return fewer rows; default 20.
    """

    name = ""

    def __init__(self, budget_minutes: float | None = None, *, sample_minutes: float = 20.0) -> None:
        self.budget_minutes, self.sample_minutes = budget_minutes, sample_minutes
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


def _missing(name: str) -> str:
    """Name of the column that says whether ``name`` is missing in a filled table."""
    return f"\0missing {name}"


def _filled(table: pd.DataFrame, spec: TableSpec) -> tuple[pd.DataFrame, TableSpec]:
    """Prepare rows for methods that know no missing cells, and describe them; `restore` takes it back.

    A missing category is one of its own. A missing number becomes the median, and a further category says so, so that
    what depends on it can be learnt.
    """
    rows, noted = prepare(table, spec, "the training table"), []
    for name in spec.numerical:
        gaps = rows[name].isna()
        if gaps.any():
            rows[_missing(name)] = np.where(gaps, "yes", "no")
            noted.append(_missing(name))
            rows[name] = rows[name].fillna(0.0 if gaps.all() else rows[name].median())
    rows[list(spec.categorical)] = rows[list(spec.categorical)].fillna(MISSING)
    return rows, replace(spec, categorical=(*spec.categorical, *noted))


def restore(rows: pd.DataFrame, table: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """Give sampled rows the look of the training table: its columns, types, decimals and range, missing cells."""
    result = {}
    rows, prepared = rows.reset_index(drop=True), prepare(table, spec, "the training table")
    for name in table.columns:
        values = rows[name]
        if name in spec.numerical:
            real = prepared[name].dropna()
            values = pd.to_numeric(values, errors="coerce").astype(float)
            if len(real):
                # Drawn, as a table may be sorted by this column.
                drawn = real.sample(min(len(real), 2000), random_state=0)
                texts = drawn.map(lambda number: np.format_float_positional(number, trim="-"))
                decimals = max(len(text.partition(".")[2]) for text in texts)
                values = values.round(decimals).clip(real.min(), real.max())
            if _missing(name) in rows:
                values = values.mask(rows[_missing(name)] == "yes")
            if name in spec.dates:
                first = pd.to_datetime(table[name].dropna().head(1).astype(object))
                values = pd.to_datetime(values, unit="s", utc=first.dt.tz is not None)
            if pd.api.types.is_integer_dtype(table[name]):
                values = values.round()
            if not values.isna().any():
                values = values.astype(table[name].dtype)
        else:
            known = {canonical_text(value): value for value in table[name].dropna().unique()}
            values = values.map(lambda value, known=known: None if value == MISSING else known[value])
        result[name] = values
    return pd.DataFrame(result)


class Smote(Baseline):
    """imbalanced-learn's SMOTE over normal quantiles and one-hot categories.

    Each new row lies between a row and one of its five nearest neighbours of the same class. As in the comparison
    published with TabSyn, numbers are first mapped to a normal distribution by their quantiles (scikit-learn): on the
    raw numbers the column with the largest ones decides alone who is near, and the gap beside a common zero fills up.
    Where two categories differ, the new row takes that of the row it is nearer to; SMOTENC's vote among all neighbours
    makes frequent categories more frequent. Numbers with few values are rounded to one of these. A regression's target
    is binned at its quintiles into classes, its missing cells being one, and interpolated like every other number.
    """

    name = "smote"
    neighbours = 5
    few_values = 32

    def _fit(self) -> None:
        self._over = require("imblearn.over_sampling", "imbalanced-learn")
        from sklearn.preprocessing import OneHotEncoder, QuantileTransformer

        target = self.spec.target
        if target is None:
            raise EvaluationError("smote needs a target")
        rows, spec = _filled(self.table, self.spec)
        classes = rows[target]
        if self.spec.task == "regression":
            bins = pd.qcut(prepare(self.table, self.spec)[target], 5, labels=False, duplicates="drop")
            classes = bins.astype(str).reset_index(drop=True)
        counts = classes.value_counts()
        kept = counts.index[counts > self.neighbours]
        if not len(kept):
            raise EvaluationError(f"smote: every class has fewer rows than {self.neighbours} neighbours")
        if len(kept) == 1:
            raise EvaluationError("smote needs two classes with enough rows")
        self.details["left_out_classes"] = sorted(set(counts.index) - set(kept))
        rows = rows[classes.isin(kept)].reset_index(drop=True)
        self._classes = classes[classes.isin(kept)].reset_index(drop=True)
        # The target stays among the columns: within a class it adds nothing to any distance.
        self._numbers, self._names = list(spec.numerical), list(spec.categorical)
        self._values = {name: np.unique(rows[name]) for name in self._numbers}
        parts = []
        if self._numbers:
            quantiles = min(1000, len(rows))
            self._scaler = QuantileTransformer(
                n_quantiles=quantiles, output_distribution="normal", random_state=self.seed
            )
            parts.append(self._scaler.fit_transform(rows[self._numbers]))
        if self._names:
            self._encoder = OneHotEncoder(sparse_output=False)
            parts.append(self._encoder.fit_transform(rows[self._names]))
        self._points = np.hstack(parts)

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw new rows; classes keep their shares."""
        counts = self._classes.value_counts()
        wanted = (counts / counts.sum() * num_samples).astype(int)
        wanted.iloc[0] += num_samples - int(wanted.sum())
        strategy = {name: int(counts[name] + wanted[name]) for name in counts.index}
        sampler = self._over.SMOTE(sampling_strategy=strategy, random_state=self.seed, k_neighbors=self.neighbours)
        points = sampler.fit_resample(self._points, self._classes)[0][len(self._points) :]
        new, width = pd.DataFrame(index=range(len(points))), len(self._numbers)
        if self._numbers:
            new[self._numbers] = self._scaler.inverse_transform(points[:, :width])
        if self._names:
            # Of an interpolated one-hot vector this takes the largest entry.
            new[self._names] = self._encoder.inverse_transform(points[:, width:])
        for name, values in self._values.items():
            if len(values) <= self.few_values:
                new[name] = values[np.abs(new[name].to_numpy()[:, None] - values).argmin(axis=1)]
        return restore(new.sample(frac=1.0, random_state=self.seed), self.table, self.spec)


class GaussianCopula(Baseline):
    """copulas' Gaussian copula over the training table's own quantiles.

    A category takes an interval of the unit interval, the commonest first, as in SDV; so does each value of a number
    that occurs more than once. SDV spreads rows at random over such intervals, which weakens every correlation. Here a
    row's score is the mean of a standard normal within its interval, and the covariance of two columns is divided by
    the variance that the scores have kept: the polyserial correlation if one of the columns is continuous, and its
    first-order approximation if none is.
    """

    name = "gaussian_copula"

    def _fit(self) -> None:
        multivariate = require("copulas.multivariate", "copulas")
        from scipy.stats import norm

        rows, spec = _filled(self.table, self.spec)
        self._values: dict[str, npt.NDArray[Any]] = {}
        self._edges: dict[str, npt.NDArray[np.float64]] = {}
        scores = {}
        for name in spec.columns:
            counts = rows[name].value_counts()
            counts = counts.sort_index() if name in spec.numerical else counts
            shares = counts.to_numpy() / len(rows)
            edges = np.concatenate([[0.0], np.cumsum(shares)[:-1], [1.0]])
            means = -np.diff(norm.pdf(norm.ppf(edges))) / shares
            scores[name] = means[counts.index.get_indexer(rows[name])]
            self._values[name], self._edges[name] = counts.index.to_numpy(), edges
        table = pd.DataFrame(scores)
        # On uniform columns the library has only the dependence to model.
        self._model = multivariate.GaussianMultivariate(
            distribution="copulas.univariate.uniform.UniformUnivariate", random_state=self.seed
        )
        self._model.fit(pd.DataFrame({name: [0.0, 1.0] for name in table}))
        self._model.correlation = _latent_correlation(table)

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows."""
        uniform = self._model.sample(num_samples)
        rows = {}
        for name, values in self._values.items():
            places = np.searchsorted(self._edges[name], uniform[name], side="right") - 1
            rows[name] = values[np.clip(places, 0, len(values) - 1)]
        return restore(pd.DataFrame(rows), self.table, self.spec)


def _latent_correlation(scores: pd.DataFrame) -> pd.DataFrame:
    """Correlation of the normal variables behind interval means; the nearest by eigenvalues that is positive."""
    kept = scores.var(ddof=0).to_numpy()
    kept = np.where(kept > 0, kept, 1.0)
    found = np.clip(np.atleast_2d(np.cov(scores.to_numpy().T, ddof=0)) / np.outer(kept, kept), -1.0, 1.0)
    np.fill_diagonal(found, 1.0)
    values, vectors = np.linalg.eigh(found)
    found = (vectors * np.maximum(values, 1e-6)) @ vectors.T
    scale = np.sqrt(np.diag(found))
    return pd.DataFrame(found / np.outer(scale, scale), scores.columns, scores.columns)


class _TimeOver(Exception):
    """Leaves a library's training loop that has no other way out."""


class _Ctgan(Baseline):
    """CTGAN or TVAE of the ctgan package, 300 epochs (the authors' choice) or what the time given allows."""

    epochs = 300
    steps_per_batch = 1

    def _fit(self) -> None:
        synthesizer = getattr(require("ctgan", "ctgan"), type(self).__name__)
        from joblib import parallel_config
        from torch.optim.optimizer import register_optimizer_step_post_hook

        deadline, steps = self._deadline(), 0
        rows, spec = _filled(self.table, self.spec)
        self._fitted = synthesizer(epochs=self.epochs)
        self._fitted.set_random_state(self.seed)

        def count(*_: Any) -> None:
            nonlocal steps
            steps += 1
            if time.monotonic() > deadline and steps % self.steps_per_batch == 0:
                raise _TimeOver

        hook = register_optimizer_step_post_hook(count)
        try:
            # The package would encode the columns in processes of their own, each of which imports all of it again.
            with parallel_config(backend="sequential"):
                self._fitted.fit(rows, list(spec.categorical))
        except _TimeOver:
            pass
        finally:
            hook.remove()
        self.details |= {"steps": steps, "epochs": round(steps / self.steps_per_batch / self._batches(len(rows)), 2)}

    @abstractmethod
    def _batches(self, rows: int) -> int:
        """Batches of an epoch, as the library counts them."""

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows."""
        return restore(self._fitted.sample(num_samples), self.table, self.spec)


class CTGAN(_Ctgan):
    """Conditional GAN (Xu et al. 2019, arXiv 1907.00503)."""

    name = "ctgan"
    # The discriminator's and the generator's.
    steps_per_batch = 2

    def _batches(self, rows: int) -> int:
        return max(rows // 500, 1)


class TVAE(_Ctgan):
    """Variational autoencoder of the same paper."""

    name = "tvae"

    def _batches(self, rows: int) -> int:
        return -(-rows // 500)


class MostlyAI(Baseline):
    """MOSTLY AI's TabularARGN (arXiv 2501.12012): columns one after the other in any order, by small networks.

    As the package has it (protected rare values, a fifth of the rows for early stopping), but that a rare category
    becomes another category, not a word for all rare ones, which no real row holds.
    """

    name = "mostlyai"

    def _fit(self) -> None:
        # Its requirements name versions of torchvision and torchaudio, which it does not use.
        remedy = "pip install --no-deps mostlyai-engine opacus opt_einsum json-repair"
        self._engine = require("mostlyai.engine", "mostlyai-engine", remedy)
        import torch
        from joblib import parallel_config

        (rows,), plain = with_plain_names(prepare(self.table, self.spec, "the training table"), spec=self.spec)
        self._names = dict(zip(plain.columns, self.spec.columns, strict=True))
        kinds = dict.fromkeys(plain.numerical, "TABULAR_NUMERIC_AUTO")
        kinds |= dict.fromkeys(plain.categorical, "TABULAR_CATEGORICAL")
        # Whole numbers have no decimals to learn, also in columns with missing cells.
        whole = rows[list(plain.numerical)].convert_dtypes()
        limit = {} if self.budget_minutes is None else {"max_training_time": self.budget_minutes}
        self._folder = tempfile.TemporaryDirectory(prefix="mostlyai-")
        self._model = self._engine.TabularARGN(
            tgt_encoding_types=kinds, workspace_dir=self._folder.name, random_state=self.seed, **limit
        )
        # The package would encode the columns in processes of their own, each of which imports all of it again.
        try:
            with parallel_config(backend="sequential"):
                self._model.fit(rows.assign(**whole))
        finally:
            torch.set_flush_denormal(False)  # the package sets it for the whole process
        (log,) = Path(self._folder.name).rglob("progress-messages.csv")
        last = pd.read_csv(log).iloc[-1]
        self.details |= {"steps": int(last["steps"]), "epochs": round(float(last["epoch"]), 2)}

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows."""
        self._engine.set_random_state(self.seed)
        rows = self._model.sample(num_samples, rare_category_replacement_method="SAMPLE")
        rows, names = rows.rename(columns=self._names), list(self.spec.categorical)
        rows[names] = rows[names].astype(object).fillna(MISSING)
        return restore(rows, self.table, self.spec)


def baselines() -> dict[str, Callable[..., Baseline]]:
    """Name to class of every baseline."""
    from difflm.training.evaluation.language_baselines import FineTunedLM, GReaT, InContext

    classes: tuple[type[Baseline], ...] = (
        Real, Independent, Smote, GaussianCopula, CTGAN, TVAE, MostlyAI, GReaT, InContext, FineTunedLM,
    )  # fmt: skip
    return {one.name: one for one in classes}
