"""Generation near the hardware's limit: compiled layers, static buffers, and a decoding step that is one CUDA graph.

`FastGeneration.sample` replaces the decoding loop inside transformers' `generate`, which still prepares the arguments,
the logits processors and the stopping criteria. The same functions run without a compiler and without a graph on a CPU,
where the tests compare them with transformers' own loop.

Shapes: B prompts, L tokens of the padded prompts, S slots of the buffers, D width of the language model.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from theworld.cuda_graphs import Graphs, compile_function, compiling
from theworld.model import gemma_layers, lora
from theworld.model.gemma_layers import DECODE_ATTENTION, Attention, LayerInputs, decoder_layer
from theworld.model.placeholders import scatter

if TYPE_CHECKING:
    from theworld.model.modeling import TheWorldForConditionalGeneration

PROMPT_MULTIPLE = 64  # prompts are padded to a multiple of it
SLOTS_MULTIPLE = 512  # buffers have a multiple of it, so that few graphs are recorded
SESSIONS = 2  # buffers and graphs that are kept, the last ones used


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class Prompts:
    """The prompts of one call without their padding, on the CPU.

    Attributes:
        ids, types: (B, L) int64, padded on the right to the longest prompt with -1; types are 1 for image tokens.
        lengths: (B,) int64.
        end_of_placeholders: slot after the last image or world token of any row, 0 if there is none.
    """

    def __init__(
        self, ids: Tensor, mask: Tensor | None, types: Tensor | None, placeholder_ids: tuple[int, ...]
    ) -> None:
        ids = ids.cpu()
        mask = torch.ones_like(ids) if mask is None else mask.cpu()
        types = torch.zeros_like(ids) if types is None else types.cpu()
        self.lengths = mask.bool().sum(dim=1)
        shift = ids.shape[1] - self.lengths  # padding is on the left
        index = torch.arange(ids.shape[1]) + shift[:, None]
        is_padding = index >= ids.shape[1]
        index = index.clamp(max=ids.shape[1] - 1)
        length = int(self.lengths.max())
        self.ids = ids.gather(1, index).masked_fill(is_padding, -1)[:, :length]
        self.types = types.gather(1, index).masked_fill(is_padding, -1)[:, :length]
        found = torch.isin(self.ids, torch.tensor(placeholder_ids)).any(dim=0).nonzero()
        self.end_of_placeholders = int(found[-1]) + 1 if found.numel() else 0

    def shared_with(self, other: Prompts) -> int:
        """How many first slots are the same in all rows of both; at least one token of each row is not counted."""
        length = min(self.ids.shape[1], other.ids.shape[1])
        same = (self.ids[:, :length] == other.ids[:, :length]) & (self.types[:, :length] == other.types[:, :length])
        shared = same.all(dim=0).long().cumprod(dim=0).sum()
        return min(int(shared), int(self.lengths.min()) - 1)

    def padded(self, values: Tensor, start: int, length: int, fill: int) -> Tensor:
        """The slots from `start`, `length` of them, of `ids` or `types`."""
        part = values[:, start : start + length]
        part = part.masked_fill(part < 0, fill)
        return torch.nn.functional.pad(part, (0, length - part.shape[1]), value=fill)


class Session:
    """Static buffers for one batch size and number of slots, and the decoding step that works on them.

    Attributes:
        keys, values: one tensor (B, G, S, E) per layer.
        tokens, positions: (B, 1) int64, of the tokens that the next step reads.
        logits: (B, vocabulary), which the last step wrote; `tokens` are already the most probable ones.
    """

    def __init__(self, fast: FastGeneration, batch: int, slots: int) -> None:
        model = fast.model
        config, weight = model.config.get_text_config(), model.get_input_embeddings().weight
        shape = (batch, config.num_key_value_heads, slots, config.head_dim)
        new = partial(torch.zeros, device=weight.device)
        # zeros, because what no token has written to is multiplied by a weight of zero
        self.keys = [new(shape, dtype=weight.dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.tokens, self.positions = new((batch, 1), dtype=torch.int64), new((batch, 1), dtype=torch.int64)
        self.logits = new((batch, config.vocab_size), dtype=weight.dtype)
        self.rows = torch.arange(batch, device=weight.device)[:, None]
        self.slots = torch.arange(slots, device=weight.device)
        self.prompts: Prompts | None = None  # whose keys and values the buffers hold, and what was scattered over them
        self.features: tuple[Tensor | None, ...] = ()
        self.weights: tuple[Any, ...] = ()
        self.step: Callable[[], None] = partial(fast.decode_step, self)
        if fast.captured:
            self.step = fast.graphs.capture(self.step, weight.device)


class FastGeneration:
    """Greedy decoding and sampling of one model.

    Args:
        compiled: whether layers run compiled; without it, they are plain functions.
        captured: whether the decoding step is a CUDA graph.
        decode_attention: one of DECODE_ATTENTION, for steps of one token.
        prefill_attention: `repeated` (torch's, with a mask) or `flex` (flex attention, which skips what is masked), for
            prompts that start at slot 0.
        options: of the compiler, for steps of one token.
        backend: of `torch.compile`.
    """

    def __init__(
        self,
        model: TheWorldForConditionalGeneration,
        *,
        compiled: bool = True,
        captured: bool = True,
        decode_attention: str = "matmul",
        prefill_attention: str = "repeated",
        options: Mapping[str, Any] | None = None,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        self.model = model
        self.compiled, self.captured = compiled, captured
        self.graphs = Graphs()
        self.decode_attention = DECODE_ATTENTION[decode_attention]
        self.flex = prefill_attention == "flex"
        self.backend = backend
        self.sessions: OrderedDict[tuple[Any, ...], Session] = OrderedDict()
        self.seen_images: tuple[Tensor, Tensor, tuple[Any, ...]] | None = None  # pixels, features, weights
        self.reused = 0  # slots of the last prompt that were not computed again
        self._layer = self._compile(decoder_layer)
        self._vision_layer = self._compile(vision_layer)
        self._step_layer = self._compile(decoder_layer, options)
        self._step_inputs = self._compile(step_inputs, options)
        self._step_outputs = self._compile(step_outputs, options)

    def _compile(self, function: Callable[..., Any], options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
        if not self.compiled:
            return function
        # shapes are fixed unless they are marked, so that one prompt's length does not decide how a step is compiled
        return compile_function(function, options=options, backend=self.backend)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """The modes in which everything here runs: compiled functions and buffers are made for these."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))  # its tensors could not be written to afterwards
            stack.enter_context(torch.no_grad())
            if self.compiled:
                stack.enter_context(compiling())
            yield

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copied or pickled model has none, and makes its own."""
        return type(None), ()

    # --------------------------------------------------------------------------------------------------------- layers

    def decode_step(self, session: Session) -> None:
        """Reads one token of each row and writes the logits after it, the next token and its position."""
        language_model: Any = self.model.language_model
        if self.compiled:
            mark_dynamic(session.slots, 0)
        hidden, inputs = self._step_inputs(language_model, session.tokens, session.positions, session.slots)
        hidden = self._layers(
            self._step_layer, hidden, inputs, session, session.positions, self.decode_attention, from_buffers=True
        )
        head = self.model.get_output_embeddings()
        self._step_outputs(language_model.norm, head, hidden, session.logits, session.tokens, session.positions)

    def _layers(
        self,
        layer_function: Callable[..., Tensor],
        hidden: Tensor,
        inputs: Mapping[str, LayerInputs],
        session: Session,
        positions: Tensor,
        attention: Attention,
        from_buffers: bool,
    ) -> Tensor:
        language_model: Any = self.model.language_model
        kinds = language_model.config.layer_types
        if self.compiled:
            for each in inputs.values():
                if isinstance(each.mask, Tensor):
                    mark_dynamic(each.mask, 3)
        for layer, kind, keys, values in zip(language_model.layers, kinds, session.keys, session.values, strict=True):
            if self.compiled:
                mark_dynamic(keys, 2)
                mark_dynamic(values, 2)
            hidden = layer_function(
                layer, hidden, inputs[kind], keys, values, session.rows, positions, attention, from_buffers
            )
        return hidden

    def prefill(self, session: Session, prompts: Prompts, start: int, features: tuple[Tensor | None, ...]) -> None:
        """Computes the prompts from slot `start`, and leaves the logits after them, the first token and its position.

        Args:
            features: image features and world tokens of the placeholders, which all come after `start` or all before.
        """
        model, language_model = self.model, self.model.language_model
        device = session.tokens.device
        length = round_up(prompts.ids.shape[1] - start, PROMPT_MULTIPLE)
        ids = prompts.padded(prompts.ids, start, length, fill=0).to(device)
        hidden = model.get_input_embeddings()(ids)
        if start < prompts.end_of_placeholders:
            named = zip(placeholders(model), features, ("image", "world"), strict=True)
            for token_id, tokens, kind in named:
                if tokens is not None:
                    hidden = scatter(hidden, ids == token_id, tokens, kind)
        window = model.config.get_text_config().sliding_window
        positions = torch.arange(start, start + length, device=device).expand(ids.shape[0], -1).contiguous()
        blocks = None
        if start == 0:
            ids_of_blocks = gemma_layers.image_blocks(prompts.padded(prompts.types, 0, length, fill=0)).to(device)
            blocks = (ids_of_blocks, ids_of_blocks)
        slots = session.slots if start else session.slots[:length]
        use_flex = self.flex and start == 0
        masks: Mapping[str, Any]
        attention: Attention
        if use_flex:
            from theworld.model import flex_layers

            masks, attention = flex_layers.flex_masks(ids_of_blocks, window), flex_layers.flex
        else:
            masks, attention = gemma_layers.masks(positions, slots, window, blocks), gemma_layers.repeated_sdpa
        rotary = gemma_layers.rotary_factors(language_model, hidden, positions)
        inputs = {kind: LayerInputs(*factors, masks[kind]) for kind, factors in rotary.items()}
        if self.compiled:
            mark_dynamic(hidden, 1)
            mark_dynamic(positions, 1)
            for each in inputs.values():
                mark_dynamic(each.cos, 1)
                mark_dynamic(each.sin, 1)
                if not use_flex:
                    mark_dynamic(each.mask, 2)
        hidden = self._layers(self._layer, hidden, inputs, session, positions, attention, from_buffers=start > 0)
        last = (prompts.lengths - 1).to(device)[:, None]
        hidden = hidden.gather(1, (last - start)[:, :, None].expand(-1, -1, hidden.shape[-1]))
        session.positions.copy_(last)  # the step's outputs advance it
        head = model.get_output_embeddings()
        self._step_outputs(language_model.norm, head, hidden, session.logits, session.tokens, session.positions)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """`TheWorldForConditionalGeneration.image_features` with compiled layers; the last images are kept."""
        weights = fingerprint(self.model.vlm.model.vision_tower, self.model.vlm.model.multi_modal_projector)
        if self.seen_images is not None:
            pixels, features, of_weights = self.seen_images
            if weights == of_weights and same_tensor(pixels, pixel_values):
                return features
        tower: Any = self.model.vlm.model.vision_tower
        hidden = tower.embeddings(pixel_values)
        if self.compiled and hidden.shape[0] > 1:
            mark_dynamic(hidden, 0)
        for layer in tower.encoder.layers:
            hidden = self._vision_layer(layer, hidden)
        features = self.model.vlm.model.multi_modal_projector(tower.post_layernorm(hidden))
        self.seen_images = (pixel_values.clone(), features, weights)
        return features

    # ----------------------------------------------------------------------------------------------------- generation

    def forget(self) -> None:
        """Drops what was kept of the last images and prompts."""
        self.seen_images = None
        for session in self.sessions.values():
            session.prompts = None

    def session(self, batch: int, slots: int) -> Session:
        """Buffers for `batch` rows of at least `slots` tokens, from the last ones used or new."""
        model = self.model
        slots = round_up(slots, SLOTS_MULTIPLE)
        key = (batch, slots, places(model.language_model), adapter_state(model.language_model))
        if key not in self.sessions:
            for old in [old for old in self.sessions if old[2] != key[2]]:  # weights were moved or replaced
                del self.sessions[old]
            while len(self.sessions) >= SESSIONS:
                self.sessions.popitem(last=False)
            self.sessions[key] = Session(self, batch, slots)
        self.sessions.move_to_end(key)
        return self.sessions[key]

    def start(self, prompts: Prompts, new_tokens: int, pixel_values: Tensor | None, **tokens: Tensor | None) -> Session:
        """A session whose first token is computed.

        Args:
            pixel_values: images, or None.
            tokens: `image_features` instead of pixels, and `world_embeds`.
        """
        with self._running():
            length = round_up(prompts.ids.shape[1], PROMPT_MULTIPLE) + PROMPT_MULTIPLE
            session = self.session(prompts.ids.shape[0], max(length, prompts.ids.shape[1] + new_tokens))
            image_features = tokens.get("image_features")
            if image_features is None and pixel_values is not None:
                image_features = self.image_features(pixel_values)
            features = (image_features, tokens.get("world_embeds"))
            weights = fingerprint(self.model.language_model)
            start = self._reusable(session, prompts, features, weights)
            session.prompts = None  # until the buffers hold these prompts
            self.prefill(session, prompts, start, features)
            session.features = tuple(None if each is None else each.clone() for each in features)
            session.prompts, session.weights, self.reused = prompts, weights, start
            return session

    def _reusable(
        self, session: Session, prompts: Prompts, features: tuple[Tensor | None, ...], weights: tuple[Any, ...]
    ) -> int:
        """How many first slots of the buffers are these prompts' already."""
        if session.prompts is None or session.weights != weights:
            return 0
        shared = prompts.shared_with(session.prompts)
        if shared < prompts.end_of_placeholders:  # image tokens see the whole of their image
            return 0
        if not all(same_tensor(kept, new) for kept, new in zip(session.features, features, strict=True)):
            return 0
        return shared

    def sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        streamer: Any = None,
        *,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        world_embeds: Tensor | None = None,
    ) -> Tensor:
        """Ids (B, L + new tokens), as the decoding loop of transformers' `generate` returns them."""
        prompts = Prompts(input_ids, attention_mask, token_type_ids, placeholders(self.model))
        longest = stopping_criteria.max_length - input_ids.shape[1]
        session = self.start(prompts, longest, pixel_values, image_features=image_features, world_embeds=world_embeds)
        greedy = not generation_config.do_sample and not logits_processor
        choose = None if greedy else partial(choose_token, logits_processor, generation_config.do_sample)
        with self._running():
            written = self._write(session, input_ids, stopping_criteria, generation_config, streamer, longest, choose)
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids, written.to(input_ids.device)], dim=1)

    def _write(
        self,
        session: Session,
        input_ids: Tensor,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        streamer: Any,
        longest: int,
        choose: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        """New tokens (B, n) on the CPU. Without `choose`, the next step is started before a token is read."""
        prompt = input_ids.cpu()
        ids = torch.cat([prompt, prompt.new_zeros(prompt.shape[0], longest)], dim=1)
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        padding = generation_config._pad_token_tensor
        pad = int(padding) if ends and padding is not None else None
        unfinished = torch.ones(prompt.shape[0], dtype=torch.bool)
        incoming = TokenReader(session.tokens)
        on_device = input_ids
        for number in range(longest):
            length = prompt.shape[1] + number + 1
            if choose is not None:
                tokens = choose(on_device, session.logits)
                if pad is not None:
                    tokens = torch.where(unfinished.to(tokens.device), tokens, pad)
                session.tokens.copy_(tokens[:, None])
                on_device = torch.cat([on_device, tokens[:, None]], dim=1)
            incoming.fetch()
            if choose is None and number + 1 < longest:
                session.step()
            tokens = incoming.read()
            if pad is not None:
                tokens = torch.where(unfinished, tokens, pad)
            ids[:, length - 1] = tokens
            if streamer is not None:
                streamer.put(tokens)
            unfinished &= ~stopping_criteria(ids[:, :length], None)
            if not unfinished.any():
                return ids[:, prompt.shape[1] : length]
            if choose is not None and number + 1 < longest:
                session.step()
        return ids[:, prompt.shape[1] :]


class TokenReader:
    """Copies the tokens of a step to the host without waiting for the steps after it."""

    def __init__(self, tokens_B1: Tensor) -> None:
        self.tokens = tokens_B1
        self.on_gpu = tokens_B1.is_cuda
        self.host = torch.empty(tokens_B1.shape, dtype=tokens_B1.dtype, pin_memory=self.on_gpu)
        self.arrived = torch.cuda.Event() if self.on_gpu else None

    def fetch(self) -> None:
        """Starts the copy; the tokens may be overwritten by what is started afterwards."""
        self.host.copy_(self.tokens, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record()

    def read(self) -> Tensor:
        """The tokens (B,) of the last `fetch`."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host[:, 0].clone()


# ------------------------------------------------------------------------------------------------- compiled functions


def step_inputs(
    language_model: Any, tokens_B1: Tensor, positions_B1: Tensor, slots_S: Tensor
) -> tuple[Tensor, dict[str, LayerInputs]]:
    """Embeddings (B, 1, D) of one token per row, and what the layers read besides them."""
    hidden = language_model.embed_tokens(tokens_B1)
    masks = gemma_layers.masks(positions_B1, slots_S, language_model.config.sliding_window)
    rotary = gemma_layers.rotary_factors(language_model, hidden, positions_B1)
    return hidden, {kind: LayerInputs(*factors, masks[kind]) for kind, factors in rotary.items()}


def step_outputs(norm: Any, head: Any, hidden_B1D: Tensor, logits: Tensor, tokens: Tensor, positions: Tensor) -> None:
    """Writes the logits of one token per row, the most probable next token, and its position."""
    logits.copy_(head(norm(hidden_B1D))[:, 0])
    tokens.copy_(logits.argmax(dim=-1, keepdim=True))
    positions.add_(1)


def vision_layer(layer: Any, hidden: Tensor) -> Tensor:
    output: Tensor = layer(hidden, attention_mask=None)
    return output


# ------------------------------------------------------------------------------------------------------------- details


def choose_token(processors: LogitsProcessorList, do_sample: bool, ids: Tensor, logits: Tensor) -> Tensor:
    """The next token (B,) of each row, as transformers chooses it."""
    scores = processors(ids, logits.to(torch.float32, copy=True))
    if do_sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
    return scores.argmax(dim=-1)


def placeholders(model: TheWorldForConditionalGeneration) -> tuple[int, int]:
    """Ids of the image and world placeholders."""
    return model.vlm.config.image_token_id, model.config.world_token_id


def mark_dynamic(tensor: Tensor, *dimensions: int) -> None:
    """These dimensions may have another size in the next call."""
    from torch import _dynamo

    _dynamo.mark_dynamic(tensor, list(dimensions))


def same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def places(module: torch.nn.Module) -> tuple[int, ...]:
    """Where the weights are in memory: recorded graphs read them there."""
    return tuple(parameter.data_ptr() for parameter in module.parameters())


def fingerprint(*modules: torch.nn.Module) -> tuple[Any, ...]:
    """Changes when a weight is replaced or written to, or a LoRA is switched."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    versions = tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
    return versions, *(adapter_state(module) for module in modules)


def adapter_state(module: torch.nn.Module) -> tuple[Any, ...]:
    """Which LoRAs of a module are active."""
    layers = lora.layers_of(module).values()
    return tuple(sorted({(layer.disable_adapters, tuple(layer.active_adapters)) for layer in layers}))
