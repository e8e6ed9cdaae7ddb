"""Whether the grammar of nested columns takes the records that it was inferred from, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from difflm.pipelines.errors import DecodingError, SchemaError
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.value_grammars import ValueGrammar, ValueSpec, library_error
from difflm.pipelines.vocabulary import Vocabulary, tokenize_segment


_MOST_RECORDS = 200
_LONGEST_RECORDS = 20


def check_nested_columns(
    records: Sequence[Mapping[str, Any]], schema: RecordSchema, tokenizer: PreTrainedTokenizerBase, eos_token_id: int
) -> None:
    """Refuse nested columns that sampling could not write.

    A sample of the values, the longest among them, is read by each nested column's own grammar.

    Parameters
    ----------
    records : sequence of dict
        Normalised records.
    schema : RecordSchema
    tokenizer : PreTrainedTokenizerBase
        The decoder's.
    eos_token_id : int

    Raises
    ------
    SchemaError
        Naming the column, a record, the reason and the remedy.
    """
    nested = [column for column in schema.columns if column.kind == "json"]
    if not nested:
        return
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer), eos_token_id)
    for column in nested:
        texts = {row: schema.value_text(column.name, record[column.name]) for row, record in enumerate(records)}
        longest = sorted(texts, key=lambda row: -len(texts[row]))[:_LONGEST_RECORDS]
        rows = [*longest, *range(0, len(records), max(1, len(records) // _MOST_RECORDS))]
        remedy = f"take it as text (text_columns=[{column.name!r}], --text-columns {column.name})"
        spec = column.rules.grammar(lambda value: "", True)
        try:
            grammar = ValueGrammar(ValueSpec(**spec), tokenizer, vocabulary, eos_token_id)
        except DecodingError as error:
            raise SchemaError(f"{str(error).rstrip('.')}: {remedy}") from None
        for row in rows:
            matcher = grammar.matcher.deep_copy()
            tokens = tokenize_segment(tokenizer, texts[row])
            taken = matcher.try_consume_tokens(tokens)
            if taken == len(tokens) and matcher.is_accepting():
                continue
            near = vocabulary.decode(tokens[max(0, taken - 5) : taken + 5])
            reason = library_error(matcher) if matcher.is_error() else "it is not in the inferred grammar"
            raise SchemaError(
                f"column {column.name!r}: sampling could not write the value of row {row} (the first is 0), near "
                f"{near!r} ({reason}): {remedy}"
            )
