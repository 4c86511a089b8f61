"""llama.cpp behind the questions of cpu.py. Runs in an environment with llama-cpp-python."""

import ctypes
import json
import os
import sys
import time

import llama_cpp as ll
import numpy as np


class Engine:
    """One GGUF with room for 16 sequences, computed together as llama.cpp's parallel slots are."""

    def __init__(self, path: str, threads: int) -> None:
        ll.llama_backend_init()
        silent = ll.llama_log_callback(lambda *_: None)
        self._kept = silent
        ll.llama_log_set(silent, ctypes.c_void_p(0))
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 16384, 512, 512, 64
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = ll.llama_init_from_model(self.model, params)
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.batch = ll.llama_batch_init(512, 0, 1)

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, whether logits are wanted), at most 512."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wants) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wants
            batch.seq_id[i][0] = sequence
        if ll.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama.cpp: no room")

    def best(self, i: int) -> int:
        """The likeliest token behind the i-th of the batch."""
        logits = ll.llama_get_logits_ith(self.context, i)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def run(self, prompts: list[list[int]], count: int) -> tuple[float, float]:
        """Seconds for the prompts with the first token, and for the ``count - 1`` behind it."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        start = time.perf_counter()
        last = []
        flat = [
            (t, p, s, p == len(prompt) - 1) for s, prompt in enumerate(prompts) for p, t in enumerate(prompt)
        ]
        for at in range(0, len(flat), 512):
            piece = flat[at : at + 512]
            self.decode(piece)
            last += [self.best(i) for i, token in enumerate(piece) if token[3]]
        middle = time.perf_counter()
        length = len(prompts[0])
        for step in range(count - 1):
            self.decode([(t, length + step, s, True) for s, t in enumerate(last)])
            last = [self.best(i) for i in range(len(last))]
        return middle - start, time.perf_counter() - middle


def main() -> None:
    """Answers one JSON line a question."""
    out = os.dup(1)
    os.dup2(2, 1)
    engine = Engine(sys.argv[1], int(sys.argv[2]))
    os.write(out, b'"ready"\n')
    for line in sys.stdin:
        os.write(out, (json.dumps(engine.run(*json.loads(line))) + "\n").encode())


if __name__ == "__main__":
    main()
