"""Make the built-in model of quept from nothing: text, tokenizer, training, files.

The library needs a language model that everyone has, that fits into a package and that suffers when its
weights are rounded coarsely. This script writes the texts of `quept.builtin.corpus`,
learns a byte-level BPE vocabulary from them, trains a small Llama with grouped-query attention on one CPU
thread and stores it in bfloat16, together with the calibration and test texts, in `src/quept/builtin`.

Small and trained without weight decay for many passes: every weight is needed, and rounding hurts. At the end the
script rounds the weights of the stored model to several bit-widths, to show by how much.

Every random choice is seeded: on one machine, with the same versions of the libraries, the same files come
out. The intermediate size is no multiple of 128 on purpose, so that the last group of a row is a short one.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from quept.builtin.corpus import CALIBRATION, TEST, TRAINING, generate

BUILTIN = Path(__file__).resolve().parents[1] / "src" / "quept" / "builtin"
VOCABULARY_SIZE = 1024
CONTEXT = 256
GROUP_SIZE = 128
BOS, EOS = "<s>", "</s>"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Generate the corpus, train tokenizer and built-in model, and write the package data.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=BUILTIN, help="folder that receives model/ and text/")
    parser.add_argument("--steps", type=int, default=8000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=8, help=f"windows of {CONTEXT} tokens per step")
    parser.add_argument("--learning-rate", type=float, default=8e-3, help="peak of the cosine schedule")
    parser.add_argument("--warmup", type=int, default=100, help="steps until the peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="AdamW weight decay of the matrices")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights and of the batches")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the result depends on it")
    return parser.parse_args()


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE: it encodes any text, and decoding gives back every byte of it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    """Tokenize `text` line by line, which gives the same tokens as at once but in parallel."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(text.splitlines(keepends=True))
    return torch.tensor([token for encoding in encodings for token in encoding.ids])


def create_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=2 * CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def batches(tokens: Tensor, arguments: argparse.Namespace, bos: int) -> Iterator[Tensor]:
    """Yield random windows; every other one starts with `bos`, which readers of text may or may not add."""
    generator = torch.Generator().manual_seed(arguments.seed)
    for _ in range(arguments.steps):
        starts = torch.randint(len(tokens) - CONTEXT, (arguments.batch_size, 1), generator=generator)
        windows = tokens[starts + torch.arange(CONTEXT)]
        windows[::2, 0] = bos
        yield windows


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Rise linearly to the peak, then fall along a cosine to nothing."""
    if step < arguments.warmup:
        return arguments.learning_rate * (step + 1) / arguments.warmup
    progress = (step - arguments.warmup) / max(1, arguments.steps - arguments.warmup)
    return arguments.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def train(model: LlamaForCausalLM, tokens: Tensor, arguments: argparse.Namespace) -> None:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": arguments.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    start, average = time.monotonic(), 0.0
    model.train()
    for step, windows in enumerate(batches(tokens, arguments, model.config.bos_token_id)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments)
        loss = model(input_ids=windows, labels=windows).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == arguments.steps:
            seconds = time.monotonic() - start
            print(f"step {step + 1:5d}/{arguments.steps}  loss {average:.4f}  {seconds:4.0f} s", flush=True)
    model.eval()


@torch.inference_mode()
def perplexity(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Return the perplexity on non-overlapping windows of `CONTEXT` tokens."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = [model(input_ids=batch, labels=batch).loss * len(batch) for batch in windows.split(16)]
    return math.exp(float(sum(losses)) / len(windows))


@torch.no_grad()
def rounded(model: LlamaForCausalLM, bits: int) -> LlamaForCausalLM:
    """Return a copy whose decoder linears are rounded to nearest: min-max, asymmetric, grouped inputs."""
    model = copy.deepcopy(model)
    for linear in (module for module in model.model.layers.modules() if isinstance(module, nn.Linear)):
        for group in linear.weight.split(GROUP_SIZE, dim=1):
            low, high = group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)
            scale = (high - low).clamp(min=1e-12) / (2**bits - 1)
            zero = (-low / scale).round()
            group.copy_((((group / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale)
    return model


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, calibration: str, test: str, output: Path
) -> None:
    model_folder, text_folder = output / "model", output / "text"
    text_folder.mkdir(parents=True, exist_ok=True)
    (text_folder / "calibration.txt").write_bytes(calibration.encode())
    (text_folder / "test.txt").write_bytes(test.encode())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)


def main() -> None:
    arguments = parse_arguments()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)

    training, calibration, test = (generate(*split) for split in (TRAINING, CALIBRATION, TEST))
    # The vocabulary is small: a tenth of the text settles it.
    tokenizer = train_tokenizer(training[: len(training) // 10])
    tokens, test_tokens = encode(tokenizer, training), encode(tokenizer, test)
    print(f"{len(training):,} characters, {len(tokens):,} tokens to train on, {len(test_tokens):,} to test on")

    model = create_model(tokenizer)
    train(model, tokens, arguments)
    model.to(torch.bfloat16)
    save(model, tokenizer, calibration, test, arguments.output)

    model.float()
    print(f"saved to {arguments.output}; test perplexity in float32: {perplexity(model, test_tokens):.4f}")
    for bits in (2, 3, 4, 8):
        print(f"  rounded to {bits} bits: {perplexity(rounded(model, bits), test_tokens):.4f}")


if __name__ == "__main__":
    main()
