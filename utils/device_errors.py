"""Errors of a device or of its memory: what torch says in one line, and what to do."""

import re

OUT_OF_MEMORY = r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED"
ADVICE = {  # by patterns of messages
    OUT_OF_MEMORY: "Try a smaller data_loader.args.batch_size (with "
    "trainer.accumulate_steps=2, an optimizer step still has twice as many samples), runtime.precision=bf16, or in "
    "evaluation a smaller data_loader.args.eval_batch_size. Other processes may use the memory too.",
    "device-side assert triggered|illegal memory access": "An index is out of range: most often a class label that is "
    "not below the number of the model's outputs, or a token that is not below the size of an embedding. Classes count "
    "from 0. A GPU reports this late; the same command with runtime.device=cpu names the line.",
}
# what torch adds to the message, about its allocator and its own debugging
_HINTS = re.compile(r"\n| Including non-PyTorch memory| If reserved but unallocated")


def device_failure(error: BaseException, line: str = "") -> str:
    """The message for an error of a device or of memory; "" for other errors. line: of the user's code."""
    if not isinstance(error, (RuntimeError, MemoryError)):
        return ""
    text = str(error) if isinstance(error, RuntimeError) else f"out of memory: {error}".rstrip(": ")
    advice = next((advice for pattern, advice in ADVICE.items() if re.search(pattern, text)), "")
    return "\n".join(filter(None, [_HINTS.split(text)[0], line, advice])) if advice else ""
