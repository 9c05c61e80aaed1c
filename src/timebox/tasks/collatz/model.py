"""Two transformers that write the digits of the answer one after the other.

Shapes: B batch, N input length, A answer length, L = N + A, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from timebox.nn import MLP, Block, Cache, CrossAttention, Norm, SelfAttention, rotary


class Writer(nn.Module):
    """What both architectures share: vocabulary, loss, and greedy writing to the end.

    A token below `base` is a digit; PAD = base, BOS = base + 1 and EOS = base + 2 are their own.
    """

    def __init__(self, base: int, input_length: int, answer_length: int, width: int, heads: int):
        super().__init__()
        self.pad, self.bos, self.eos = base, base + 1, base + 2
        self.input_length, self.answer_length = input_length, answer_length
        self.channels = width // heads
        self.embedding = nn.Embedding(base + 3, width)
        nn.init.normal_(self.embedding.weight)
        self.norm = Norm(width)
        self.head = nn.Linear(width, base + 3, bias=False)
        nn.init.zeros_(self.head.weight)

    def logits(self, input_BN: torch.Tensor, given_BA: torch.Tensor) -> torch.Tensor:
        """Logits (B, A, V) of each answer token, from the input and the tokens before it."""
        raise NotImplementedError

    def begin(self, input_BN: torch.Tensor):
        """Whatever `extend` needs to know of the input."""
        raise NotImplementedError

    def extend(self, state, token_B: torch.Tensor, place: int) -> torch.Tensor:
        """Logits (B, V) of answer token `place`, after `token_B`, the one before."""
        raise NotImplementedError

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy of the answer's digits and EOS: per token in an example, then weighted."""
        answer_BA, weight_B = batch["answer"], batch["weight"]
        given_BA = F.pad(answer_BA[:, :-1], (1, 0), value=self.bos)
        logits_BAV = self.logits(batch["input"], given_BA).float()
        written_BA = answer_BA != self.pad
        count_B = written_BA.sum(1)
        loss_BA = F.cross_entropy(
            logits_BAV.flatten(0, 1), answer_BA.flatten(), reduction="none"
        ).view_as(answer_BA)
        loss_B = (loss_BA * written_BA).sum(1) / count_B
        right_BA = (logits_BAV.detach().argmax(-1) == answer_BA) & written_BA
        share_B = weight_B / weight_B.sum().clamp_min(1e-12)
        accuracy = (right_BA.sum(1) / count_B * share_B).sum()
        return (loss_B * weight_B).sum(), {"token_accuracy": accuracy}

    @torch.no_grad()
    def predict(self, input_BN: torch.Tensor) -> torch.Tensor:
        """The most probable next token again and again: (B, up to A) tokens, PAD after EOS."""
        state = self.begin(input_BN)
        token_B = torch.full_like(input_BN[:, 0], self.bos)
        done_B = torch.zeros_like(token_B, dtype=torch.bool)
        written: list[torch.Tensor] = []
        while len(written) < self.answer_length and not bool(done_B.all()):
            token_B = self.extend(state, token_B, len(written)).argmax(-1)
            written.append(torch.where(done_B, self.pad, token_B))
            done_B = done_B | (token_B == self.eos)
        return torch.stack(written, 1)


class Decoder(Writer):
    """One stack over input and answer: the input sees itself whole, the answer what came before."""

    def __init__(self, base, input_length, answer_length, width, heads, layers):
        super().__init__(base, input_length, answer_length, width, heads)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))

    def logits(self, input_BN, given_BA):
        N, A = input_BN.shape[1], given_BA.shape[1]
        x_BLD = self.embedding(torch.cat((input_BN, given_BA), 1))
        position_L = torch.arange(N + A, device=x_BLD.device)
        seen_LL = (position_L < N) | (position_L <= position_L[:, None])
        real_BL = F.pad(input_BN != self.pad, (0, A), value=True)
        mask = seen_LL & real_BL[:, None, None]
        turn = rotary(position_L[None], self.channels)
        for block in self.blocks:
            x_BLD = block(x_BLD, turn, mask)
        return self.head(self.norm(x_BLD[:, N:]))

    def begin(self, input_BN):
        caches = [Cache() for _ in self.blocks]
        real_BN = input_BN != self.pad
        turn = rotary(torch.arange(input_BN.shape[1], device=input_BN.device)[None], self.channels)
        x_BND = self.embedding(input_BN)
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BND = block(x_BND, turn, real_BN[:, None, None], cache=cache)
        return caches, real_BN

    def extend(self, state, token_B, place):
        caches, real_BN = state
        position = torch.tensor([[real_BN.shape[1] + place]], device=token_B.device)
        turn = rotary(position, self.channels)
        mask = F.pad(real_BN, (0, place + 1), value=True)[:, None, None]
        x_B1D = self.embedding(token_B[:, None])
        for block, cache in zip(self.blocks, caches, strict=True):
            x_B1D = block(x_B1D, turn, mask, cache=cache)
        return self.head(self.norm(x_B1D[:, 0]))


class CrossBlock(nn.Module):
    """A pre-norm decoder layer: attention to the answer so far, to the input, and an MLP."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention_norm, self.attention = Norm(width), SelfAttention(width, heads)
        self.cross_norm, self.cross = Norm(width), CrossAttention(width, heads)
        self.mlp_norm, self.mlp = Norm(width), MLP(width, hidden)

    def forward(self, x_BAD, keys_values, turn, real, causal=False, cache: Cache | None = None):
        x_BAD = x_BAD + self.attention(self.attention_norm(x_BAD), turn, causal=causal, cache=cache)
        x_BAD = x_BAD + self.cross(self.cross_norm(x_BAD), keys_values, turn, real)
        return x_BAD + self.mlp(self.mlp_norm(x_BAD))


class EncoderDecoder(Writer):
    """A bidirectional encoder of the input and a decoder that looks at it (recipe "paper")."""

    def __init__(self, base, input_length, answer_length, width, heads, layers, decoder_layers):
        super().__init__(base, input_length, answer_length, width, heads)
        self.encoder = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.encoder_norm = Norm(width)
        self.decoder = nn.ModuleList(
            CrossBlock(width, heads, 4 * width) for _ in range(decoder_layers)
        )

    def _encode(self, input_BN):
        real = (input_BN != self.pad)[:, None, None]
        turn = rotary(torch.arange(input_BN.shape[1], device=input_BN.device)[None], self.channels)
        x_BND = self.embedding(input_BN)
        for block in self.encoder:
            x_BND = block(x_BND, turn, real)
        x_BND = self.encoder_norm(x_BND)
        return [block.cross.keys_values(x_BND, turn) for block in self.decoder], real

    def logits(self, input_BN, given_BA):
        memory, real = self._encode(input_BN)
        turn = rotary(torch.arange(given_BA.shape[1], device=given_BA.device)[None], self.channels)
        x_BAD = self.embedding(given_BA)
        for block, keys_values in zip(self.decoder, memory, strict=True):
            x_BAD = block(x_BAD, keys_values, turn, real, causal=True)
        return self.head(self.norm(x_BAD))

    def begin(self, input_BN):
        return *self._encode(input_BN), [Cache() for _ in self.decoder]

    def extend(self, state, token_B, place):
        memory, real, caches = state
        turn = rotary(torch.tensor([[place]], device=token_B.device), self.channels)
        x_B1D = self.embedding(token_B[:, None])
        for block, keys_values, cache in zip(self.decoder, memory, caches, strict=True):
            x_B1D = block(x_B1D, keys_values, turn, real, cache=cache)
        return self.head(self.norm(x_B1D[:, 0]))
