"""Baselines that write records with a language model: GReaT, in-context learning, and a LoRA fine-tuned model.

All three use the decoder of the small preset (SmolLM2-135M-Instruct), so that what differs is the method.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from difflm.training.evaluation.baselines import Baseline, require
from difflm.training.evaluation.tables import EvaluationError
from difflm.training.presets import SMOLLM2


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
        Records trained on, or written, together.
    """

    def __init__(
        self,
        budget_minutes: float | None = 45.0,
        *,
        sample_minutes: float = 20.0,
        decoder: str = SMOLLM2,
        batch_size: int = 16,
    ) -> None:
        super().__init__(budget_minutes)
        self._records: Any = None
        self.sample_minutes, self.decoder, self.batch_size = sample_minutes, decoder, batch_size

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoTokenizer

        from difflm.modeling_difflm import load_decoder, resolve_source

        torch.manual_seed(self.seed)
        source, gguf_file = resolve_source(self.decoder)
        options = {} if gguf_file is None else {"gguf_file": gguf_file}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model: Any = load_decoder(self.decoder, decoder_dtype="float32")
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer

    def _record_schema(self) -> Any:
        from difflm.pipelines.records import RecordSchema

        return RecordSchema.infer(self.table)

    def _write(self, model: Any, tokenizer: Any, prompts: Any, num_samples: int, max_new_tokens: int) -> pd.DataFrame:
        """Generate texts until enough of them parse, or time is over; note the share that did."""
        import torch

        from difflm.pipelines.records import RecordParseError

        torch.manual_seed(self.seed)
        deadline, tried = time.monotonic() + 60 * self.sample_minutes, 0
        records: list[dict[str, Any]] = []
        model.eval()
        while len(records) < num_samples and time.monotonic() < deadline:
            inputs = tokenizer(prompts(), return_tensors="pt", padding=True, padding_side="left").to(model.device)
            with torch.no_grad():
                tokens = model.generate(
                    **inputs,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
                )
            texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            tried += len(texts)
            for text in texts:
                try:
                    records.append(self._records.parse(text.strip().splitlines()[0] if text.strip() else ""))
                except RecordParseError:
                    continue
        self.details |= {"texts": tried, "validity_rate": len(records) / tried if tried else 0.0}
        if not records:
            raise EvaluationError(f"{self.name}: none of {tried} texts is a record (validity 0)")
        return self._records.to_pandas(records[:num_samples])


class GReaT(_LanguageBaseline):
    """be-great: the whole model fine-tuned on rows as sentences, columns in random order (arXiv 2210.06280)."""

    name = "great"

    def _fit(self) -> None:
        great = require("be_great", "be-great").GReaT
        import torch
        from transformers import TrainerCallback

        deadline = self._deadline()

        class Limit(TrainerCallback):  # type: ignore[misc]
            """Stops a training at the deadline."""

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
                """Check the clock."""
                control.should_training_stop |= time.monotonic() > deadline
                return control

        with tempfile.TemporaryDirectory() as folder:
            model, tokenizer = self._load()
            # be-great loads its model by path, and the decoder may be a package's GGUF file.
            source = Path(folder) / "decoder"
            model.save_pretrained(source)
            tokenizer.save_pretrained(source)
            self._model = great(
                llm=str(source),
                experiment_dir=str(Path(folder) / "run"),
                epochs=100,
                batch_size=self.batch_size,
                seed=self.seed,
                save_strategy="no",
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
            )
            trainer_class = __import__("be_great.great", fromlist=["GReaTTrainer"]).GReaTTrainer
            initialise = trainer_class.__init__

            def with_limit(trainer: Any, *arguments: Any, **keywords: Any) -> None:
                initialise(trainer, *arguments, **keywords)
                trainer.add_callback(Limit())

            # fit() takes no callbacks of ours and builds its trainer itself.
            trainer_class.__init__ = with_limit
            try:
                trainer = self._model.fit(self.table)
            finally:
                trainer_class.__init__ = initialise
            self.details |= {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows in portions until there are enough or time is over."""
        import torch

        torch.manual_seed(self.seed)
        deadline, parts = time.monotonic() + 60 * self.sample_minutes, []
        rows = 0
        longest = int(self.table.astype(str).map(len).sum(axis=1).max()) + 12 * len(self.table.columns)
        while rows < num_samples and time.monotonic() < deadline:
            part = self._model.sample(
                min(100, num_samples - rows),
                k=self.batch_size,
                max_length=longest,
                temperature=0.7,
                device=str(self._model.model.device),
            )
            parts.append(part)
            rows += len(part)
            if not len(part):
                break
        if not rows:
            raise EvaluationError("great: no valid row was sampled")
        return pd.concat(parts, ignore_index=True)[list(self.table.columns)]


class InContext(_LanguageBaseline):
    """Five training records as examples in the prompt, drawn anew for each text; nothing is trained."""

    name = "icl"
    shots = 5

    def _fit(self) -> None:
        self._records = self._record_schema()
        self._lines = [self._records.serialize(record) for record in self._records.to_records(self.table)]

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows; texts that are no record are dropped and counted."""
        model, tokenizer = self._load()
        generator = np.random.default_rng([self.seed, 2])

        def prompts() -> list[str]:
            chosen = []
            for _ in range(self.batch_size):
                shown = generator.choice(len(self._lines), min(self.shots, len(self._lines)), replace=False)
                text = "Records of one table, a JSON object a line. Go on with one more realistic, new record.\n"
                chosen.append(text + "\n".join(self._lines[place] for place in shown) + "\n")
            return chosen

        longest = max(len(tokenizer(line)["input_ids"]) for line in self._lines[:500])
        return self._write(model, tokenizer, prompts, num_samples, longest + 16)


class FineTunedLM(_LanguageBaseline):
    """The decoder fine-tuned by LoRA (peft, rank 16) on the same JSON records that DiffLM reconstructs."""

    name = "lora_lm"
    learning_rate = 5e-4
    max_epochs = 20

    def _fit(self) -> None:
        peft = require("peft", "peft")
        import torch

        self._records = self._record_schema()
        records = self._records.to_records(self.table)
        base, self._tokenizer = self._load()
        settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        self._model = peft.get_peft_model(base, settings)
        end = self._tokenizer.eos_token
        self._start = self._tokenizer.bos_token or end
        texts = [self._start + self._records.serialize(record) + end for record in records]
        self._tokens = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        generator = np.random.default_rng([self.seed, 3])
        deadline, steps, device = self._deadline(), 0, base.device
        self._model.train()
        for epoch in range(self.max_epochs):
            order = generator.permutation(len(self._tokens))
            for first in range(0, len(order), self.batch_size):
                if time.monotonic() > deadline:
                    break
                rows = [self._tokens[place] for place in order[first : first + self.batch_size]]
                width = max(map(len, rows))
                ids = torch.zeros(len(rows), width, dtype=torch.long)
                mask = torch.zeros_like(ids)
                for place, row in enumerate(rows):
                    ids[place, : len(row)] = torch.tensor(row)
                    mask[place, : len(row)] = 1
                labels = ids.masked_fill(mask == 0, -100)
                inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
                loss = self._model(**{key: value.to(device) for key, value in inputs.items()}).loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                steps += 1
            self.details |= {"steps": steps, "epochs": epoch + 1}
            if time.monotonic() > deadline:
                break

    def sample(self, num_samples: int) -> pd.DataFrame:
        """Draw rows; texts that are no record are dropped and counted."""
        longest = max(map(len, self._tokens))
        return self._write(
            self._model, self._tokenizer, lambda: [self._start] * self.batch_size, num_samples, longest + 8
        )
