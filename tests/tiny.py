"""Tiny models and tokenizers, made on the spot: every architecture of the test matrix, offline."""

from __future__ import annotations

import copy
import functools
import tempfile
from typing import TYPE_CHECKING

import torch
import transformers

from probes.items import Item, Items

if TYPE_CHECKING:
    from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
# As Gemma's: writes BOS itself and refuses a system turn.
NO_SYSTEM_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHAT_TEMPLATE
)
_TEXTS = [
    "Rate how positive or negative the emotion of the word is on a scale from 1 to 5, where 1 is very negative.",
    "Reply with the number only. Score: 1 2 3 4 5 6 7 8 9 0, yes no Yes No, A B C D E.",
    "## Task Summarise the article. ## Response The committee met on Tuesday and agreed on very little.",
    "You are a careful judge. You rate a response by one criterion and answer with a score only.",
    # Often enough for the trainers to merge every letter and answer, with and without the space in front.
    *["Answer: A\nA B\nB C\nC D\nD E\nE yes\nyes Yes\nYes no\nno No\nNo"] * 12,
]


@functools.cache
def _tokenizer_folder(kind: str) -> str:
    folder = tempfile.mkdtemp(prefix=f"tokenizer-{kind}-")
    if kind == "sentencepiece":
        return _sentencepiece(folder)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # As SmolLM2's: digits stand alone, so " 1" is a space and "1".
    digits = [pre_tokenizers.Digits(individual_digits=True)] if kind == "digits" else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<unk>", "<s>", "</s>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS * 20, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    ).save_pretrained(folder)
    return folder


def _sentencepiece(folder: str) -> str:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS * 20),
        model_prefix=f"{folder}/tokenizer",
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        pad_id=-1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    transformers.LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def tokenizer(kind: str = "digits", chat_template: str | None = CHAT_TEMPLATE):
    """A tokenizer: ``digits`` (as SmolLM2), ``merged`` (as GPT-2) or ``sentencepiece`` (as Llama 2)."""
    made = transformers.AutoTokenizer.from_pretrained(_tokenizer_folder(kind))
    made.chat_template = chat_template
    return made


def _sizes(**extra):
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 400,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return sizes | extra


_GQA = {"num_key_value_heads": 2}
_CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_sizes(**_GQA)),
    "mistral": lambda: transformers.MistralConfig(**_sizes(**_GQA, sliding_window=8)),
    "qwen2": lambda: transformers.Qwen2Config(**_sizes(**_GQA)),
    "qwen3": lambda: transformers.Qwen3Config(**_sizes(**_GQA, head_dim=12)),
    "gemma2": lambda: transformers.Gemma2Config(
        **_sizes(**_GQA, head_dim=12, sliding_window=8, query_pre_attn_scalar=12),
        final_logit_softcapping=5.0,
        attn_logit_softcapping=5.0,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_sizes(**_GQA, head_dim=12, sliding_window=8, query_pre_attn_scalar=12)
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=48, n_layer=3, n_head=4, n_positions=512, vocab_size=400, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_sizes(), use_parallel_residual=True),
    "phi": lambda: transformers.PhiConfig(**_sizes()),
    "olmo2": lambda: transformers.Olmo2Config(**_sizes(**_GQA)),
    "cohere": lambda: transformers.CohereConfig(**_sizes(**_GQA), logit_scale=0.3),
    "granite": lambda: transformers.GraniteConfig(**_sizes(**_GQA), logits_scaling=3.0),
    "bloom": lambda: transformers.BloomConfig(
        hidden_size=48, n_layer=3, n_head=4, vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=2
    ),
}
ARCHITECTURES = tuple(_CONFIGS)
_CONFIGS |= {
    # Position embeddings that depend on the longest sequence of a pass; prompts of the tests exceed 30 tokens.
    "longrope": lambda: transformers.LlamaConfig(
        **_sizes(**_GQA),
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 6,
            "long_factor": [2.0 + k for k in range(6)],
            "factor": 4.0,
            "original_max_position_embeddings": 30,
        },
    ),
    "dynamic": lambda: transformers.LlamaConfig(
        **_sizes(**_GQA) | {"max_position_embeddings": 100},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    ),
    # Models that keep a state: all layers, or every other one.
    "mamba": lambda: transformers.MambaConfig(
        hidden_size=48,
        num_hidden_layers=3,
        state_size=8,
        vocab_size=400,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **_sizes(**_GQA), layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False
    ),
    "falcon": lambda: transformers.FalconConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=400,
        alibi=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        new_decoder_architecture=False,
        multi_query=True,
    ),
    # Kinds of attention and of layers that the models above lack; see test_zoo.
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_sizes(**_GQA, head_dim=12, sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **_sizes(num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, v_head_dim=12),
        **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2},
        topk_group=1,
    ),
    "smollm3": lambda: transformers.SmolLM3Config(**_sizes(**_GQA), no_rope_layers=[1, 0, 1]),
    "gemma4": lambda: transformers.Gemma4TextConfig(
        **_sizes(**_GQA, head_dim=12, global_head_dim=12, sliding_window=8),
        **{"vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 1},
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    ),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=48,
        word_embed_proj_dim=48,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=400,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ),
    "falcon_alibi": lambda: transformers.FalconConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=400,
        alibi=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        new_decoder_architecture=False,
        multi_query=False,
    ),
    "bamba": lambda: transformers.BambaConfig(
        **_sizes(**_GQA, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=12, mamba_d_state=8),
        **{"mamba_n_groups": 1, "mamba_expand": 2, "mamba_chunk_size": 16},
    ),
}


def hf_model(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32):
    """A random model whose norms, biases and embeddings are of order one, so that a skipped term shows."""
    return copy.deepcopy(_hf_model(architecture, seed)).to(dtype)


@functools.cache
def _hf_model(architecture: str, seed: int):
    config = _CONFIGS[architecture]()
    config.tie_word_embeddings = False
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_matrix = parameter.ndim == 2 and not any(word in name for word in ("embed", "wte", "wpe"))
            head = name.startswith(("lm_head", "embed_out"))
            parameter.copy_(noise * (1.0 if head else 0.25 if is_matrix else 1.0))
            if "norm" in name or ".ln_" in name:
                parameter.add_(0.5)
    return model


def save_model(folder: Path, architecture: str = "llama", tokenizer_kind: str = "digits") -> Path:
    """Write model and tokenizer as a Hugging Face folder."""
    hf_model(architecture).save_pretrained(folder)
    tokenizer(tokenizer_kind).save_pretrained(folder)
    return folder


def prompts(n: int = 5, shortest: int = 20, longest: int = 44, seed: int = 0) -> list[list[int]]:
    """Random prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(shortest, longest, n).long().tolist()
    return [torch.randint(10, 370, (length,), generator=generator).tolist() for length in lengths]


WORDS = "calm joy ruin gloom party tax rain cake debt song fear hope mud gold lie rest storm tea war zoo".split()


def word_items(n: int = len(WORDS), human: bool = True) -> Items:
    """Words with two raters each on -4..4."""
    scores = [(float(k % 9 - 4), float((k * 5) % 9 - 4)) for k in range(n)]
    return Items(
        [Item(id=word, fields={"response": word}, human=scores[k] if human else ()) for k, word in enumerate(WORDS[:n])]
    )


def interrupted(*args, **options):
    """Stands in for what a user stops."""
    raise KeyboardInterrupt
