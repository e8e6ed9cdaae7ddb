"""Baselines that write records with a language model: GReaT, in-context learning, and a LoRA fine-tuned model.

All three use the decoder of DiffLM's small preset (SmolLM2-135M-Instruct), and bf16 products where the hardware has
them, as DiffLM does, so that what differs is the method.
"""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from difflm.training.evaluation.baselines import Baseline, require
from difflm.training.evaluation.tables import EvaluationError
from difflm.training.presets import PRESETS, SMOLLM2


class _Schedule:
    """Learning rate that warms up and then falls linearly to zero at the end of the time or of the steps."""

    def __init__(self, rate: float, deadline: float, steps: int, warmup: int = 20) -> None:
        self.rate, self.steps, self.warmup = rate, steps, warmup
        self.started, self.deadline = time.monotonic(), deadline

    @property
    def over(self) -> bool:
        """Whether the time is."""
        return time.monotonic() > self.deadline

    def __call__(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        passed = (time.monotonic() - self.started) / max(self.deadline - self.started, 1e-9)
        left = 1.0 - max(step / self.steps, passed)
        return self.rate * min(1.0, (step + 1) / self.warmup) * min(max(left, 0.0), 1.0)


class _LanguageBaseline(Baseline):
    """A language model that writes records.

    Parameters
    ----------
    budget_minutes
        Time limit of ``fit``; default 45.
    sample_minutes
        Time limit of ``sample``, which then returns fewer rows; default 20.
    decoder
        As for ``difflm fit --decoder``.
    batch_size
        Records trained on together.
    sample_batch_size
        Records written together.
    """

    def __init__(
        self,
        budget_minutes: float | None = 45.0,
        *,
        sample_minutes: float = 20.0,
        decoder: str = SMOLLM2,
        batch_size: int = 8,
        sample_batch_size: int = 64,
    ) -> None:
        super().__init__(budget_minutes, sample_minutes=sample_minutes)
        self._records: Any = None
        self.decoder, self.batch_size, self.sample_batch_size = decoder, batch_size, sample_batch_size

    @property
    def _bf16(self) -> bool:
        from difflm.devices import choose_device
        from difflm.modeling_difflm import multiplies_bf16

        return multiplies_bf16(choose_device())

    def _load(self, dtype: str | None = None) -> tuple[Any, Any]:
        import torch
        from transformers import AutoTokenizer

        from difflm.devices import choose_device
        from difflm.modeling_difflm import load_decoder, resolve_source

        torch.manual_seed(self.seed)
        source, gguf_file = resolve_source(self.decoder)
        options = {} if gguf_file is None else {"gguf_file": gguf_file}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model: Any = load_decoder(self.decoder, decoder_dtype=dtype)
        return model.to(choose_device()), tokenizer

    def _record_schema(self, record_format: str) -> Any:
        from difflm.pipelines.record_schema import RecordSchema

        return RecordSchema.infer(self.table, record_format=record_format)

    def _read(self, line: str) -> dict[str, Any]:
        """Read a record, or raise a ValueError."""
        return self._records.parse(line)

    def _portions(self, write: Callable[[], tuple[int, list[Any]]], num_samples: int) -> list[Any]:
        """Write until there are enough rows or time is over; note the texts written and the share that were rows.

        Parameters
        ----------
        write
            One batch: the number of its texts, and the rows among them.
        num_samples
            Rows wanted.
        """
        deadline, texts = time.monotonic() + 60 * self.sample_minutes, 0
        rows: list[Any] = []
        # The first batch is written whatever the limit.
        while not texts or (len(rows) < num_samples and time.monotonic() < deadline):
            tried, valid = write()
            texts += tried
            rows += valid
        self.details |= {"texts": texts, "validity_rate": len(rows) / texts}
        if not rows:
            raise EvaluationError(f"{self.name}: none of {texts} texts is a record (validity 0)")
        return rows[:num_samples]

    def _write(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Callable[[int], list[str]],
        num_samples: int,
        *,
        max_new_tokens: int,
        continuations: int = 1,
        temperature: float = 1.0,
    ) -> pd.DataFrame:
        """Let a model go on with prompts, several times with each, and keep the lines that are records."""
        import torch

        torch.manual_seed(self.seed)
        model.eval()
        # A record is one line: what comes after it is not worth its time.
        ends = [place for place, text in enumerate(map(tokenizer.decode, range(len(tokenizer)))) if "\n" in text]
        ends.append(tokenizer.eos_token_id)

        def write() -> tuple[int, list[dict[str, Any]]]:
            given = prompts(max(self.sample_batch_size // continuations, 1))
            inputs = tokenizer(
                given, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
            ).to(model.device)
            start = inputs["input_ids"].shape[1]
            with torch.no_grad():
                tokens = model.generate(
                    **_repeated(model, inputs, continuations),
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=ends,
                    pad_token_id=tokenizer.pad_token_id,
                )
            texts = tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)
            records = []
            for text in texts:
                with contextlib.suppress(ValueError):
                    records.append(self._read(text.strip().partition("\n")[0]))
            return len(texts), records

        return self._records.to_pandas(self._portions(write, num_samples))


def _repeated(model: Any, inputs: Any, times: int) -> dict[str, Any]:
    """Inputs of ``generate`` for several continuations of each prompt, which is read only once."""
    if times == 1:
        return dict(inputs)
    from transformers import DynamicCache

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache = DynamicCache(config=model.config)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    # All but the last token: generate() wants one to begin with.
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=places[:, :-1],
        past_key_values=cache,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(times)
    repeated = {name: value.repeat_interleave(times, dim=0) for name, value in inputs.items()}
    return repeated | {"past_key_values": cache}


class GReaT(_LanguageBaseline):
    """be-great: the whole model fine-tuned on rows as sentences, columns in random order (arXiv 2210.06280).

    The package's own rate, 5e-5 with a decay over 100 epochs, is meant for hours on a GPU; here a higher one falls to
    zero within the budget. Sampling starts from the target's classes (from the last column in a regression), at the
    package's temperature of 0.7. Missing cells are written as "None", as the package does.
    """

    name = "great"
    learning_rate = 5e-4
    epochs = 20

    def _fit(self) -> None:
        great = require("be_great", "be-great").GReaT
        import torch
        from be_great import great as library
        from transformers import TrainerCallback

        from difflm.devices import choose_device

        # Whole numbers are written without ".0", also in columns with missing cells.
        numbers = self.table.select_dtypes("number").convert_dtypes()
        rows = self.table.assign(**{name: numbers[name] for name in numbers})
        steps = self.epochs * -(-len(rows) // self.batch_size)
        schedule = _Schedule(self.learning_rate, self._deadline(), steps)

        class Limit(TrainerCallback):  # type: ignore[misc]
            """Sets the learning rate, and stops at the deadline."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                """Overrule the trainer's constant rate."""
                for group in kwargs["optimizer"].param_groups:
                    group["lr"] = schedule(state.global_step)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
                """Check the clock."""
                control.should_training_stop |= schedule.over
                return control

        class LimitedTrainer(library.GReaTTrainer):  # type: ignore[misc]
            """The package's trainer, which takes no callbacks of ours."""

            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                super().__init__(*arguments, **keywords)
                self.add_callback(Limit())

        with tempfile.TemporaryDirectory() as folder:
            model, tokenizer = self._load("float32")
            if "<|endoftext|>" in tokenizer.get_vocab():
                # The only token that be-great takes out of what was written.
                tokenizer.pad_token = tokenizer.eos_token = "<|endoftext|>"
                model.generation_config.eos_token_id = tokenizer.eos_token_id
                model.generation_config.pad_token_id = tokenizer.pad_token_id
            # be-great loads its model by path, and the decoder may be a package's GGUF file.
            source = Path(folder) / "decoder"
            model.save_pretrained(source)
            tokenizer.save_pretrained(source)
            del model
            self._model = great(
                llm=str(source),
                experiment_dir=str(Path(folder) / "run"),
                epochs=self.epochs,
                batch_size=self.batch_size,
                seed=self.seed,
                learning_rate=self.learning_rate,
                lr_scheduler_type="constant",
                logging_steps=10,
                save_strategy="no",
                bf16=self._bf16,
                use_cpu=choose_device().type == "cpu",
                disable_tqdm=True,
            )
            target = self.spec.target if self.spec.task == "classification" else None
            if target is None or rows[target].isna().any():
                complete = [name for name in rows.columns if rows[name].notna().all()]
                target = complete[-1] if complete else None
            original = library.GReaTTrainer
            library.GReaTTrainer = LimitedTrainer
            try:
                trainer = self._model.fit(rows, conditional_col=target, random_conditional_col=False)
            finally:
                library.GReaTTrainer = original
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        self.details |= {"steps": trainer.state.global_step, "epochs": round(trainer.state.epoch, 2)}
        self.details |= {"losses": [round(loss, 3) for loss in losses[:1] + losses[-1:]]}
        some = (
            rows.sample(min(len(rows), 1000), random_state=self.seed).astype(object).where(lambda cells: cells.notna())
        )
        sentences = [
            ", ".join(f"{name} is {value}" for name, value in row.items()) for row in some.to_dict(orient="records")
        ]
        if self._bf16:
            self._model.model.to(torch.bfloat16)
        self._longest = max(map(len, self._model.tokenizer(sentences)["input_ids"])) + 8

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows; texts that are no row of the table's columns are dropped and counted."""
        from transformers import set_seed

        set_seed(self.seed)
        size, generate = self.sample_batch_size, self._model.model.generate
        device = str(self._model.model.device)

        def write() -> tuple[int, list[dict[str, Any]]]:
            calls = 0

            def once(**options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > 1:
                    raise TimeoutError("one batch is enough")
                return generate(**options)

            # The package writes until it has enough rows, whatever the time. On an error it returns what it has.
            self._model.model.generate = once
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    rows = self._model.sample(
                        1_000_000, k=size, max_length=self._longest, temperature=0.7, device=device
                    )
            finally:
                self._model.model.generate = generate
            return size, rows.to_dict(orient="records")

        return pd.DataFrame(self._portions(write, num_samples))[list(self.table.columns)]


class InContext(_LanguageBaseline):
    """Five training records as examples in the prompt, drawn anew for every eight texts; nothing is trained.

    The prompt is plain text: in its chat template this decoder wrote no record at all. The temperature is GReaT's.
    """

    name = "icl"
    shots = 5
    continuations = 8

    def _fit(self) -> None:
        self._records = self._record_schema("json")
        self._lines = [self._records.serialize(record) for record in self._records.to_records(self.table)]

    def _read(self, line: str) -> dict[str, Any]:
        # Any order of the keys and any number of decimals: nobody taught this model the table's own.
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
        return self._records.normalize(record)

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows; texts that are no record are dropped and counted."""
        model, tokenizer = self._load()
        generator = np.random.default_rng([self.seed, 2])
        task = "Records of one table, a JSON object a line. Go on with one more realistic, new record.\n"

        def prompts(count: int) -> list[str]:
            chosen = []
            for _ in range(count):
                shown = generator.choice(len(self._lines), min(self.shots, len(self._lines)), replace=False)
                chosen.append(task + "\n".join(self._lines[place] for place in shown) + "\n")
            return chosen

        longest = max(len(tokenizer(line)["input_ids"]) for line in self._lines[:500])
        return self._write(
            model,
            tokenizer,
            prompts,
            num_samples,
            max_new_tokens=longest + 16,
            continuations=self.continuations,
            temperature=0.7,
        )


class FineTunedLM(_LanguageBaseline):
    """The decoder fine-tuned by LoRA (peft, rank 16) on records in the form that DiffLM's small preset writes."""

    name = "lora_lm"
    learning_rate = 1e-3
    max_epochs = 20

    def _fit(self) -> None:
        deadline = self._deadline()
        peft = require("peft", "peft")
        import torch

        self._records = self._record_schema(PRESETS["small"].record_format)
        records = self._records.to_records(self.table)
        base, self._tokenizer = self._load()
        settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        self._model = peft.get_peft_model(base, settings)
        end = self._tokenizer.eos_token
        self._start = self._tokenizer.bos_token or end
        texts = [self._start + self._records.serialize(record) + end for record in records]
        self._tokens = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        generator = np.random.default_rng([self.seed, 3])
        batches = -(-len(texts) // self.batch_size)
        schedule, steps, losses = _Schedule(self.learning_rate, deadline, self.max_epochs * batches), 0, []
        self._model.train()
        while steps < schedule.steps and (not steps or not schedule.over):
            if steps % batches == 0:
                order = generator.permutation(len(texts))
            first = steps % batches * self.batch_size
            for group in optimizer.param_groups:
                group["lr"] = schedule(steps)
            loss = self._model(**self._batch(order[first : first + self.batch_size])).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(loss.item())
            steps += 1
        self.details |= {"steps": steps, "epochs": round(steps / batches, 2)}
        self.details |= {"losses": [round(float(np.mean(part)), 3) for part in (losses[:10], losses[-10:])]}

    def _batch(self, places: Any) -> dict[str, Any]:
        """Pad some of the records to one length; padding is no label."""
        rows = [self._tokens[place] for place in places]
        inputs = self._tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return {name: value.to(self._model.device) for name, value in inputs.items()}

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows; texts that are no record are dropped and counted."""
        longest = max(map(len, self._tokens))
        return self._write(
            self._model,
            self._tokenizer,
            lambda count: [self._start] * count,
            num_samples,
            max_new_tokens=longest + 8,
        )
