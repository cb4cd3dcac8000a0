"""The table of families."""

from __future__ import annotations

from configs.families.family import Family
from configs.families.gemma2 import GEMMA_2
from configs.families.gpt2 import GPT_2
from configs.families.gpt_neo import GPT_NEO
from configs.families.gpt_neox import GPT_NEOX
from configs.families.gptj import GPT_J
from configs.families.llama import LLAMA, MISTRAL, QWEN_2, QWEN_3
from configs.families.olmo2 import OLMO_2

# By model_type. Of several that a model could be exported as, the first is taken.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (GPT_2, GPT_NEO, GPT_J, GPT_NEOX, LLAMA, MISTRAL, QWEN_2, QWEN_3, OLMO_2, GEMMA_2)
}
