"""A loaded model, which sessions, batches and benchmarks share."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch

from mllama_cli.core.config import GenerationConfig, MllamaConfig, MllamaTextConfig
from mllama_cli.core.events import Event, Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.core.settings import require_image_kv, require_one_precision
from mllama_cli.engine.cuda.backend import CapturedDecoder
from mllama_cli.engine.cuda.leading import LeadingDecoder
from mllama_cli.engine.device import choose_devices, free_bytes, make_current
from mllama_cli.engine.forward import PREFILL_CHUNK, Decoder, Network
from mllama_cli.engine.parallel.crew import Crew
from mllama_cli.engine.parallel.leading import LeadingCache, share_out
from mllama_cli.engine.parallel.plan import WHOLE, Share, fewest_ranks, require_divisible
from mllama_cli.engine.parallel.team import Team
from mllama_cli.engine.vision import VisionEncoder
from mllama_cli.engine.weights.float8_vision import use_float8
from mllama_cli.engine.weights.loader import StoredWeights
from mllama_cli.engine.weights.memory import choose_prefill_chunk
from mllama_cli.engine.weights.opening import CheckpointOpening
from mllama_cli.model.cache import KVCache
from mllama_cli.model.layers import set_exact
from mllama_cli.processing.grammar import Constraint, GrammarTokenizer
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.quantization.opening import open_network
from mllama_cli.system.json_file import read_json


class LoadedModel:
    """A network with everything that turns prompts into tokens on one device.

    ``weights`` loads the parts that are missing; None if the network is complete. With a ``team``, the network is rank
    0's share, and ``config`` describes that. ``notice`` is a line for the user. ``image_kv`` is "fp8" if batches keep
    the images' keys and values in 8 bits. ``fast`` encodes images with float8 products where the device has them.
    """

    def __init__(
        self,
        network: Network,
        config: MllamaConfig,
        processor: MllamaProcessor,
        *,
        device: torch.device,
        dtype: torch.dtype,
        generation_config: GenerationConfig | None = None,
        weights: StoredWeights | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        team: Team | None = None,
        notice: str = "",
        image_kv: str | None = None,
        fast: bool = False,
    ) -> None:
        self.network, self.config, self.processor = network, config, processor
        self.device, self.dtype = device, dtype
        self.generation_config = generation_config or GenerationConfig()
        self.weights = weights
        self.eos = frozenset(self.generation_config.eos_token_id or config.text_config.eos_token_id)
        self.prefill_chunk = prefill_chunk
        """Prompt tokens for each forward pass, as the memory that is left allows."""
        self.team, self._notice, self.image_kv, self.fast = team, notice, image_kv, fast
        self.vision = VisionEncoder(network, processor, device, team)
        self.decoder = _decoder(network, dtype, device, team)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        exact: bool = False,
        image_kv: str | None = None,
        fast: bool = False,
        adapters: Sequence[Path] = (),
        meeting: Path | None = None,
        crew: Crew | None = None,
        load_soon: bool = False,
    ) -> "LoadedModel":
        """Open a checkpoint, with LoRA adapters to merge; ``load`` then reads its weights.

        Several devices need a process for each but the first. With ``load_soon`` they are started now rather than by
        ``load``. ``crew`` has them if they run already; ``meeting`` is the socket where they join if something else has
        started them.

        Raise CheckpointError, DeviceError or UsageError.
        """
        require_image_kv(image_kv)
        require_one_precision(exact=exact, fast=fast)
        raw = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        generation_config = GenerationConfig.from_dict(read_json(generation) if generation.is_file() else {})
        opening = CheckpointOpening(folder, dtype, quantize, exact, tuple(adapters))
        text = MllamaConfig.from_dict(raw).text_config
        chosen, *others = choose_devices(device)
        if device == "auto" and chosen.type == "cuda" and torch.cuda.device_count() > 1:
            chosen, *others = _few_gpus(opening, text)
        make_current(chosen)
        team = None
        if others:
            require_divisible(text, 1 + len(others))
            team = Team([chosen, *others], opening, text, meeting, crew)
            if load_soon and meeting is None:
                team.begin()
        opened = open_network(folder, raw)
        config = opened.config
        vision, context = config.vision_config is not None, config.text_config.max_position_embeddings
        processor = MllamaProcessor.from_pretrained(folder, config.image_token_index, vision=vision, max_tokens=context)
        if load_soon and processor.chat_template is not None:
            processor.chat_template.start()
        processor.tokenizer.require_below(config.text_config.embeddings)
        share = team.share if team is not None else WHOLE
        weights = StoredWeights(opened, chosen, dtype, quantize, adapters, share)
        set_exact(opened.network, exact)
        return cls(
            opened.network,
            weights.config,
            processor,
            device=chosen,
            dtype=weights.dtype,
            generation_config=generation_config,
            weights=weights,
            team=team,
            notice=_sharing_note(team) if team is not None and device == "auto" else "",
            image_kv=image_kv,
            fast=fast,
        )

    @property
    def devices(self) -> Sequence[torch.device]:
        """All devices that share the model."""
        return (self.device,) if self.team is None else self.team.devices

    @property
    def has_vision(self) -> bool:
        """Whether the model accepts images."""
        return self.config.vision_config is not None

    def lacks(self, *, vision: bool) -> bool:
        """Return whether weights have yet to be loaded for prompts, with images if ``vision``."""
        return self.weights is not None and bool(self.weights.missing(vision=vision))

    @property
    def image_itemsize(self) -> int:
        """The bytes of each number that a batch keeps of an image."""
        return 1 if self.image_kv is not None else self.dtype.itemsize

    @property
    def vision_loaded(self) -> bool:
        """Whether the weights for images are in memory."""
        return self.has_vision if self.weights is None else "vision" in self.weights.loaded

    @property
    def max_context(self) -> int:
        """Tokens of one conversation, prompt and answer together."""
        return self.config.text_config.max_position_embeddings

    def default_sampling(self) -> Sampling:
        return Sampling.from_defaults(self.generation_config)

    @cached_property
    def grammars(self) -> GrammarTokenizer:
        """The vocabulary with which grammars are applied; made by the first use, which takes a second."""
        return GrammarTokenizer(self.processor.tokenizer, self.config.text_config.vocab_size, self.eos)

    def constraint(self, sampling: Sampling, beginning: str = "") -> Constraint | None:
        """Return what holds one answer to its grammar, if it has one.

        Raise UsageError if the grammar cannot be enforced, or if the answer's ``beginning`` does not fit it.
        """
        return self.grammars.constraint(sampling.grammar, beginning) if sampling.grammar is not None else None

    def new_cache(self, batch: int = 1) -> KVCache:
        """Return an empty self KV cache."""
        config, dtype, device = self.config.text_config, self.dtype, self.device
        if self.team is not None:
            return LeadingCache(self.team, batch, dtype=dtype, device=device)
        return KVCache(config, batch, dtype=dtype, device=device)

    def load(self, *, vision: bool = False) -> Iterator[Event]:
        """Load the weights for text and, with ``vision``, for images, unless loaded; yield progress."""
        if self.weights is None or not (missing := self.weights.missing(vision=vision)):
            return
        if self._notice:
            yield Notice(self._notice)
            self._notice = ""
        if self.team is not None:
            if not self.team.is_started:
                self.team.start()
            self.team.load(missing)
        yield from self.weights.load(missing)
        if self.fast and "vision" in missing and (note := use_float8(self.network, self.dtype, self.device)):
            yield Notice(note)
        if self.team is not None:
            self.team.wait()
            if not self.team.leads:  # not before: a layer runs alone while weights load, to warm up
                self.team.meet()
                share_out(self.network, self.team)
        free = free_bytes(self.device) if self.device.type == "cuda" else 0
        self.prefill_chunk = choose_prefill_chunk(self.config, self.dtype.itemsize, self.device.type, free)


def _decoder(network: Network, dtype: torch.dtype, device: torch.device, team: Team | None) -> Decoder:
    if device.type != "cuda":
        return Decoder(network)
    return CapturedDecoder(network, dtype, device) if team is None else LeadingDecoder(network, dtype, device, team)


def _few_gpus(opening: CheckpointOpening, text: MllamaTextConfig) -> list[torch.device]:
    """Return as few GPUs as the model needs; the first alone if even all are too small."""

    def fits(share: Share) -> bool:
        return opening.fits(share, torch.device("cuda", share.rank))

    count = fewest_ranks(text, torch.cuda.device_count(), fits)
    return [torch.device("cuda", index) for index in range(count)] if count > 1 else [torch.device("cuda")]


def _sharing_note(team: Team) -> str:
    return f"One GPU is too small for this model: {', '.join(map(str, team.devices))} share it"
