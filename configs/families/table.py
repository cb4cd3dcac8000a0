"""The table of families."""

from __future__ import annotations

from configs.families.family import Family
from configs.families.gpt2 import GPT_2
from configs.families.gpt_neo import GPT_NEO

# By model_type. Of several that a model could be exported as, the first is taken.
FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT_2, GPT_NEO)}
