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

from theworld.compilation import compile_function, compiling, mark_dynamic
from theworld.cuda_graphs import CudaGraphs, Graphs
from theworld.model import gemma_layers, lora
from theworld.model.devices import to_device
from theworld.model.gemma_layers import DECODE_ATTENTION, Attention, FusedWeights, LayerInputs, decoder_layer, fuse
from theworld.model.gemma_vision import FastVision, same_tensor, vision_layer
from theworld.model.placeholders import check_number
from theworld.model.prompts import Prompts, TokenReader, choose_token, most_probable, round_up
from theworld.model.weights_state import WeightsState, WeightsWatch

if TYPE_CHECKING:
    from theworld.model.modeling import TheWorldForConditionalGeneration

PROMPT_MULTIPLE = 64  # prompts are padded to a multiple of it
SLOTS_MULTIPLE = 512  # buffers have a multiple of it, so that few graphs are recorded
SESSIONS = 2  # buffers and graphs that are kept, the last ones used
PROMPT_GRAPHS = 4  # lengths of prompts, for each of them
IMAGE_GRAPHS = 2  # numbers of images
GRAPH_TOKENS = 8192  # of all prompts; with more, the GPU is busy for longer than the host
# for steps of one token: products with one row become reductions, which are tuned, and what they read is computed once,
# not in each of their blocks
TUNED: Mapping[str, Any] = {"coordinate_descent_tuning": True, "realize_opcount_threshold": 4}


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
        self.fused = fast.fused_weights()
        self.prompts: Prompts | None = None  # whose keys and values the buffers hold, and what was scattered over them
        self.features: tuple[Tensor | None, ...] = ()
        self.weights: WeightsState | None = None
        self.read_prompts = partial(fast.read_prompts, self)
        self.read_prompts_captured = fast.graphs_of(self.read_prompts, PROMPT_GRAPHS)
        self.step: Callable[[], None] = partial(fast.decode_step, self)
        if fast.captured:
            self.step = fast.graphs.capture(self.step, weight.device)


class FastGeneration:
    """Greedy decoding and sampling of one model.

    Args:
        compiled: whether layers run compiled; without it, they are plain functions.
        captured: whether the decoding step, the reading of prompts and the vision tower are CUDA graphs.
        decode_attention: one of DECODE_ATTENTION, for steps of one token.
        fused: whether layers read their weights in fewer products; the weights then are views of larger tensors.
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
        fused: bool = True,
        options: Mapping[str, Any] | None = TUNED,
        backend: str | Callable[..., Any] | None = None,
    ) -> None:
        self.model = model
        self.compiled, self.captured = compiled, captured
        self.graphs = Graphs()
        self.decode_attention = DECODE_ATTENTION[decode_attention]
        self.fused = fused
        self.backend = backend
        gemma = model.vlm.model
        self.language_weights = WeightsWatch(model.language_model, model.get_output_embeddings())
        self.sessions: OrderedDict[tuple[Any, ...], Session] = OrderedDict()
        self.reused = 0  # slots of the last prompt that were not computed again
        self._layer = self._compile(decoder_layer)
        self._last_layer = self._compile(gemma_layers.keys_and_values)
        self.image_features = FastVision(
            gemma, self._compile(vision_layer), compiled, partial(self.graphs_of, number=IMAGE_GRAPHS)
        )
        self._step_layer = self._compile(decoder_layer, options)
        self._step_inputs = self._compile(step_inputs, options)
        self._step_outputs = self._compile(step_outputs, options)

    def _compile(self, function: Callable[..., Any], options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
        if not self.compiled:
            return function
        # shapes are fixed unless they are marked, so that one prompt's length does not decide how a step is compiled
        return compile_function(function, options=options, backend=self.backend)

    def graphs_of(self, function: Callable[..., Any], number: int) -> Callable[..., Any]:
        """The function as CUDA graphs, one for each shape; the first call with a shape only runs it."""
        if not self.captured:
            return function
        graphs = CudaGraphs(function, number)
        graphs.graphs = self.graphs  # of one pool
        return graphs

    def fused_weights(self) -> list[FusedWeights | None]:
        """For each layer, its weights as views of larger tensors, or None where they are not fused."""
        layers: Any = self.model.language_model.layers
        if not self.fused:
            return [None] * len(layers)
        return [fuse(layer) for layer in layers]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The modes in which everything here runs: compiled functions and buffers are made for these."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(lora.held(self.model.language_model))
            stack.enter_context(torch.inference_mode(False))  # its tensors could not be written to afterwards
            stack.enter_context(torch.no_grad())
            if self.captured:
                stack.enter_context(torch.cuda.device(self.model.device))  # whose streams graphs are recorded on
            if self.compiled:
                stack.enter_context(compiling())
            yield

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copied or pickled model has none, and makes its own."""
        return type(None), ()

    # --------------------------------------------------------------------------------------------------------- layers

    def decode_step(self, session: Session) -> None:
        """Reads one token of each row and writes the logits after it, the next token and its position."""
        self._finish(session, None, slice(None))

    def _finish(self, session: Session, hidden: Tensor | None, layers: slice) -> None:
        """Runs these layers on one token of each row, whose embedding is read without `hidden` (B, 1, D)."""
        language_model: Any = self.model.language_model
        if self.compiled:
            mark_dynamic(session.slots, 0)
        embedded, inputs = self._step_inputs(language_model, session.tokens, session.positions, session.slots)
        if self.compiled:
            for each in inputs.values():
                mark_dynamic(each.mask, 3)
        hidden = self._layers(
            self._step_layer,
            embedded if hidden is None else hidden,
            inputs,
            session,
            session.positions,
            self.decode_attention,
            from_buffers=True,
            layers=layers,
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
        layers: slice = slice(None),
    ) -> Tensor:
        for layer, kind, keys, values, fused in self._layers_of(session, layers):
            if self.compiled and hidden.shape[1] > 1:
                mark_dynamic(hidden, 1)
            hidden = layer_function(
                layer, hidden, inputs[kind], keys, values, session.rows, positions, attention, from_buffers, fused
            )
        return hidden

    def _layers_of(self, session: Session, chosen: slice) -> Iterator[tuple[Any, str, Tensor, Tensor, Any]]:
        """Some layers, with their types, buffers and fused weights."""
        model: Any = self.model.language_model
        columns = (list(model.layers), model.config.layer_types, session.keys, session.values, session.fused)
        for each in zip(*(column[chosen] for column in columns), strict=True):
            if self.compiled:
                mark_dynamic(each[2], 2)
                mark_dynamic(each[3], 2)
            yield each

    def prefill(self, session: Session, prompts: Prompts, start: int, features: tuple[Tensor | None, ...]) -> None:
        """Computes the prompts from slot `start`, and leaves the logits after them, the first token and its position.

        Args:
            features: image features and world tokens of the placeholders; those of a kind all come after `start` or all
                before it.
        """
        weight = self.model.get_input_embeddings().weight
        length = round_up(prompts.ids.shape[1] - start, PROMPT_MULTIPLE)
        ids = prompts.padded(prompts.ids, start, length, fill=0)
        prefix = 0 if start else min(round_up(prompts.end_of_images, PROMPT_MULTIPLE), length)
        blocks = gemma_layers.image_blocks(prompts.padded(prompts.types, 0, prefix, fill=0))
        on_host = [ids, blocks, torch.tensor([start]), prompts.lengths - 1]
        replaced = []
        ends = (prompts.end_of_images, prompts.end_of_placeholders)
        kinds = zip(placeholders(self.model), features, ("image", "world"), ends, strict=True)
        for token_id, tokens, kind, end in kinds:
            if tokens is None or start >= end:
                tokens = weight.new_empty(0, 0, weight.shape[1])
            on_host.append((ids.flatten() == token_id).nonzero()[:, 0])
            check_number(len(on_host[-1]), tokens.shape[0] * tokens.shape[1], kind)
            replaced.append(tokens.flatten(0, 1).to(weight))
        small = ids.numel() <= GRAPH_TOKENS
        read = session.read_prompts_captured if small else session.read_prompts
        read(*to_device(on_host, weight.device), *replaced, fresh=start == 0)

    def read_prompts(
        self,
        session: Session,
        ids: Tensor,
        blocks: Tensor,
        start: Tensor,
        last: Tensor,
        image_places: Tensor,
        world_places: Tensor,
        image_features: Tensor,
        world_embeds: Tensor,
        *,
        fresh: bool,
    ) -> None:
        """`prefill` on the device alone.

        Args:
            ids: (B, L), the tokens from slot `start` (1,).
            blocks: (B, U) of the tokens up to the last image, see `image_blocks`.
            last: (B,) slots of the last tokens.
            image_places, world_places: (n,) of the placeholders in B·L, which the features (n, D) replace.
            fresh: whether `start` is 0.
        """
        model, language_model = self.model, self.model.language_model
        length, window = ids.shape[1], model.config.get_text_config().sliding_window
        hidden = model.get_input_embeddings()(ids)
        flat = hidden.view(-1, hidden.shape[-1])
        flat[image_places] = image_features
        flat[world_places] = world_embeds
        positions = (start + torch.arange(length, device=ids.device)).expand(ids.shape[0], -1).contiguous()
        split = fresh and blocks.shape[1] < length
        masks: Mapping[str, Any]
        if split:
            masks = gemma_layers.prompt_masks(blocks, length, window, gemma_layers.can_flash(hidden))
        else:
            slots = session.slots[:length] if fresh else session.slots
            masks = gemma_layers.masks(positions, slots, window, (blocks, blocks) if fresh else None)
        rotary = gemma_layers.rotary_factors(language_model, hidden, positions)
        inputs = {kind: LayerInputs(*factors, masks[kind]) for kind, factors in rotary.items()}
        if self.compiled:
            mark_dynamic(positions, 1)
            for each in inputs.values():
                mark_dynamic(each.cos, 1)
                mark_dynamic(each.sin, 1)
                mask = each.mask.rest if split else each.mask
                if mask is not None:
                    mark_dynamic(mask, 2, 3)
        attention: Attention = gemma_layers.prompt_attention if split else gemma_layers.repeated_sdpa
        hidden = self._layers(self._layer, hidden, inputs, session, positions, attention, not fresh, layers=slice(-1))
        for layer, kind, keys, values, _ in self._layers_of(session, slice(-1, None)):
            if self.compiled:
                mark_dynamic(hidden, 1)
            self._last_layer(layer, hidden, inputs[kind], keys, values, session.rows, positions)
        session.positions.copy_(last[:, None])  # the step's outputs advance it
        hidden = hidden.gather(1, (last - start)[:, None, None].expand(-1, -1, hidden.shape[-1]))
        self._finish(session, hidden, slice(-1, None))

    # ----------------------------------------------------------------------------------------------------- generation

    def forget(self) -> None:
        """Drops what was kept of the last images and prompts."""
        self.image_features.forget()
        for session in self.sessions.values():
            session.prompts = None

    def session(self, batch: int, slots: int) -> Session:
        """Buffers for `batch` rows of `slots` tokens, from the last ones used or new."""
        weights = self.language_weights.state()
        key = (batch, slots, weights.places, weights.adapters)
        if key not in self.sessions:
            for old in [old for old in self.sessions if old[2] != key[2]]:  # weights were moved or replaced
                del self.sessions[old]
            while len(self.sessions) >= SESSIONS:
                self.sessions.popitem(last=False)
            session = Session(self, batch, slots)
            weights = self.language_weights.state()  # fusing has moved them
            key = (batch, slots, weights.places, weights.adapters)
            self.sessions[key] = session
        self.sessions.move_to_end(key)
        return self.sessions[key]

    def begin(self, pixel_values: Tensor) -> None:
        """Starts to read images (n, 3, H, W) that `sample` is going to be given."""
        with self.running():
            self.image_features.begin(pixel_values)

    def start(self, prompts: Prompts, new_tokens: int, pixel_values: Tensor | None, **tokens: Tensor | None) -> Session:
        """A session whose first token is computed.

        Args:
            pixel_values: images, or None.
            tokens: `image_features` instead of pixels, and `world_embeds`.
        """
        with self.running():
            batch, length = prompts.ids.shape
            session = self.session(batch, slots_for(length, new_tokens))
            image_features = tokens.get("image_features")
            if image_features is None and pixel_values is not None:
                image_features = self.image_features(pixel_values)
            features = (image_features, tokens.get("world_embeds"))
            weights = self.language_weights.state()
            start = self._reusable(session, prompts, features, weights)
            session.prompts = None  # until the buffers hold these prompts
            self.prefill(session, prompts, start, features)
            session.features = tuple(None if each is None else each.clone() for each in features)
            session.prompts, session.weights, self.reused = prompts, weights, start
            return session

    def _reusable(
        self, session: Session, prompts: Prompts, features: tuple[Tensor | None, ...], weights: WeightsState
    ) -> int:
        """How many first slots of the buffers are these prompts' already."""
        if session.prompts is None or session.weights != weights:
            return 0
        same_images, same_world = map(same_tensor, session.features, features)
        shared = prompts.shared_with(session.prompts)
        if same_images and same_world and shared >= prompts.end_of_placeholders:
            return shared
        # image tokens see the whole of their image, and world tokens may have changed
        shared = min(shared, prompts.start_of_world)
        return shared if same_images and shared >= prompts.end_of_images else 0

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
        prompt = input_ids.cpu()  # before the GPU is busy
        prompts = Prompts(prompt, attention_mask, token_type_ids, placeholders(self.model))
        longest = stopping_criteria.max_length - input_ids.shape[1]
        session = self.start(prompts, longest, pixel_values, image_features=image_features, world_embeds=world_embeds)
        greedy = not generation_config.do_sample and not logits_processor
        choose = None if greedy else partial(choose_token, logits_processor, generation_config.do_sample)
        with self.running():
            written = self._write(
                session, input_ids, prompt, stopping_criteria, generation_config, streamer, longest, choose
            )
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids, written.to(input_ids.device)], dim=1)

    def _write(
        self,
        session: Session,
        input_ids: Tensor,
        prompt: Tensor,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        streamer: Any,
        longest: int,
        choose: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        """New tokens (B, n) on the CPU, as `prompt` is. Without `choose`, a step is started before a token is read."""
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
    tokens.copy_(most_probable(logits))
    positions.add_(1)


# ------------------------------------------------------------------------------------------------------------- details


def placeholders(model: TheWorldForConditionalGeneration) -> tuple[int, int]:
    """Ids of the image and world placeholders."""
    return model.vlm.config.image_token_id, model.config.world_token_id


def slots_for(length: int, new_tokens: int) -> int:
    """Slots of the buffers for prompts of `length` tokens, of which the end may be read again, and their answers."""
    prompt = round_up(length, PROMPT_MULTIPLE) + PROMPT_MULTIPLE
    return round_up(max(prompt, length + new_tokens), SLOTS_MULTIPLE)
