"""The six models: neuralforecast's argument names, defaults and parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from flash_attention.models._module import ForecastModel, Node

__all__ = ["TFT", "Autoformer", "FEDformer", "Informer", "PatchTST", "iTransformer"]

_SETTINGS = """
        output_size: outputs per step and series, neuralforecast's `loss.outputsize_multiplier`: 1
            for MAE and MSE, 2 for a Normal, one per quantile for MQLoss.
        use_flash_attention: {switch}
        flash_block_size: keys per online-softmax step of the operator, at least 1.
        gradient_checkpointing: recompute each layer in the backward instead of keeping its
            activations: less memory, more time, the same results.
"""
_SAME_RESULTS = "exact attention by the operator, without score matrices; the same results."
_REPLACES = """REPLACES the paper's mechanism by exact softmax attention with the same
            projections. This is a different model, which has to be trained as such. The default
            is neuralforecast's model."""


def _complete(switch: str) -> Any:
    """Fill in the arguments that all six classes have."""

    def decorate(cls: type[ForecastModel]) -> type[ForecastModel]:
        if cls.__doc__:  # None with python -OO
            cls.__doc__ = cls.__doc__.replace(
                "\n        SETTINGS\n", _SETTINGS.format(switch=switch)
            )
        return cls

    return decorate


class _CausalAttention(Node):
    """Adds neuralforecast's constant mask to the state_dict; the computation does not need it."""

    length: int
    """Rows and columns of the mask."""

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = next(self.parameters())
        mask = weight.new_full((1, self.length, self.length), -torch.inf, requires_grad=False)
        destination[prefix + "_mask"] = mask.triu(1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        state_dict.pop(prefix + "_mask", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


@_complete(_SAME_RESULTS)
class TFT(ForecastModel):
    """Temporal Fusion Transformer (Lim et al., arXiv:1912.09363).

    Input: insample_y [B, input_size, 1], futr_exog [B, input_size + h, F], hist_exog
    [B, input_size, X], stat_exog [B, S].

    Args:
        h: steps to forecast.
        input_size: steps of the past that the model sees.
        tgt_size: number of targets; only 1 is supported.
        stat_exog_list: names of the static columns; None for none.
        hist_exog_list: names of the columns known for the past.
        futr_exog_list: names of the columns known for the past and the future.
        hidden_size: width of the model.
        n_head: attention heads.
        attn_dropout: probability of dropping an attention weight in training.
        grn_activation: activation of the gated residual networks: "ELU", "GELU", "LeakyReLU",
            "ReLU", "SELU", "Sigmoid", "Softplus" or "Tanh"; any other name means "ELU", with a
            warning.
        n_rnn_layers: layers of the recurrent encoders.
        rnn_type: "lstm" or "gru".
        one_rnn_initial_state: use one initial state, computed from the static columns, for all
            recurrent layers.
        dropout: probability of dropping an activation in training.
        SETTINGS

    Raises:
        ValueError: an argument is out of range or of another type.
    """

    node_types: ClassVar[Mapping[str, type[Node]]] = {
        "temporal_fusion_decoder.attention": _CausalAttention
    }

    def __init__(
        self,
        h: int,
        input_size: int,
        tgt_size: int = 1,
        stat_exog_list: Sequence[str] | None = None,
        hist_exog_list: Sequence[str] | None = None,
        futr_exog_list: Sequence[str] | None = None,
        hidden_size: int = 128,
        n_head: int = 4,
        attn_dropout: float = 0.0,
        grn_activation: str = "ELU",
        n_rnn_layers: int = 1,
        rnn_type: str = "lstm",
        one_rnn_initial_state: bool = False,
        dropout: float = 0.1,
        *,
        output_size: int = 1,
        use_flash_attention: bool = False,
        flash_block_size: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())
        attention = self.get_submodule("temporal_fusion_decoder.attention")
        assert isinstance(attention, _CausalAttention)
        attention.length = input_size + h


@_complete(_SAME_RESULTS)
class Informer(ForecastModel):
    """Informer (Zhou et al., arXiv:2012.07436): attention for the few most active queries.

    Input: insample_y [B, input_size, 1], futr_exog [B, input_size + h, F].

    Every forward samples the keys by which queries are selected from torch's generator, in eval
    mode too, as in neuralforecast: the same seed gives the same output.

    Args:
        h: steps to forecast.
        input_size: steps of the past that the model sees.
        futr_exog_list: names of the columns known for the past and the future; None for none.
        decoder_input_size_multiplier: fraction of the past that the decoder sees, in (0, 1).
        hidden_size: width of the model; even.
        dropout: probability of dropping an activation in training.
        factor: number of sampled keys and selected queries: factor * ceil(ln(length)).
        n_head: attention heads.
        conv_hidden_size: width of the feed-forward layers.
        activation: "gelu" or "relu".
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        distil: halve the sequence between encoder layers.
        SETTINGS

    Raises:
        ValueError: an argument is out of range or of another type.
    """

    def __init__(
        self,
        h: int,
        input_size: int,
        futr_exog_list: Sequence[str] | None = None,
        *,
        decoder_input_size_multiplier: float = 0.5,
        hidden_size: int = 128,
        dropout: float = 0.05,
        factor: int = 3,
        n_head: int = 4,
        conv_hidden_size: int = 32,
        activation: str = "gelu",
        encoder_layers: int = 2,
        decoder_layers: int = 1,
        distil: bool = True,
        output_size: int = 1,
        use_flash_attention: bool = False,
        flash_block_size: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())


@_complete(_REPLACES)
class Autoformer(ForecastModel):
    """Autoformer (Wu et al., arXiv:2106.13008): decomposition and auto-correlation.

    Input: insample_y [B, input_size, 1], futr_exog [B, input_size + h, F].

    As in neuralforecast, training chooses the delays for the whole batch, eval mode for each
    window, so their outputs differ even without dropout.

    Args:
        h: steps to forecast.
        input_size: steps of the past that the model sees.
        futr_exog_list: names of the columns known for the past and the future; None for none.
        exclude_insample_y: replace the series by zeros.
        decoder_input_size_multiplier: fraction of the past that the decoder sees, in (0, 1).
        hidden_size: width of the model.
        dropout: probability of dropping an activation in training.
        factor: number of delays: factor * ln(length), rounded down.
        n_head: attention heads.
        conv_hidden_size: width of the feed-forward layers.
        activation: "gelu" or "relu".
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        MovingAvg_window: steps of the moving average that is the trend; odd.
        SETTINGS

    Raises:
        ValueError: an argument is out of range or of another type.
    """

    def __init__(
        self,
        h: int,
        input_size: int,
        futr_exog_list: Sequence[str] | None = None,
        *,
        exclude_insample_y: bool = False,
        decoder_input_size_multiplier: float = 0.5,
        hidden_size: int = 128,
        dropout: float = 0.05,
        factor: int = 3,
        n_head: int = 4,
        conv_hidden_size: int = 32,
        activation: str = "gelu",
        encoder_layers: int = 2,
        decoder_layers: int = 1,
        MovingAvg_window: int = 25,
        output_size: int = 1,
        use_flash_attention: bool = False,
        flash_block_size: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())


@_complete(_REPLACES)
class FEDformer(ForecastModel):
    """FEDformer (Zhou et al., arXiv:2201.12740) with Fourier blocks, which mix a few frequencies.

    Input: insample_y [B, input_size, 1], futr_exog [B, input_size + h, F].

    The layers of an encoder or decoder share their Fourier weights: `parameters()` has them once,
    `state_dict()` under each of their names.

    Args:
        h: steps to forecast.
        input_size: steps of the past that the model sees.
        futr_exog_list: names of the columns known for the past and the future; None for none.
        decoder_input_size_multiplier: fraction of the past that the decoder sees, in (0, 1).
        version: "Fourier".
        modes: maximum number of frequencies.
        mode_select: "random" for random frequencies, anything else for the lowest.
        hidden_size: width of the model; a multiple of 8.
        dropout: probability of dropping an activation in training.
        n_head: 8.
        conv_hidden_size: width of the feed-forward layers.
        activation: "gelu" or "relu".
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        MovingAvg_window: steps of the moving average that is the trend; odd.
        random_seed: seed of the frequencies for mode_select="random". neuralforecast draws the same
            ones.
        fourier_index: explicit frequencies, which neuralforecast does not store: sorted lists
            for "enc_self", "dec_self", "dec_cross_q" and "dec_cross_kv".
        SETTINGS

    Raises:
        ValueError: an argument is out of range or of another type.
    """

    def __init__(
        self,
        h: int,
        input_size: int,
        futr_exog_list: Sequence[str] | None = None,
        *,
        decoder_input_size_multiplier: float = 0.5,
        version: str = "Fourier",
        modes: int = 64,
        mode_select: str = "random",
        hidden_size: int = 128,
        dropout: float = 0.05,
        n_head: int = 8,
        conv_hidden_size: int = 32,
        activation: str = "gelu",
        encoder_layers: int = 2,
        decoder_layers: int = 1,
        MovingAvg_window: int = 25,
        random_seed: int = 1,
        fourier_index: Mapping[str, Sequence[int]] | None = None,
        output_size: int = 1,
        use_flash_attention: bool = False,
        flash_block_size: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())


@_complete(_SAME_RESULTS)
class PatchTST(ForecastModel):
    """PatchTST (Nie et al., arXiv:2211.14730): attention over patches of one series.

    Input: insample_y [B, input_size, 1].

    Args:
        h: steps to forecast.
        input_size: steps of the past that the model sees.
        encoder_layers: layers of the encoder.
        n_heads: attention heads, each of width hidden_size / n_heads, rounded down.
        hidden_size: width of the model.
        linear_hidden_size: width of the feed-forward layers.
        dropout: probability of dropping an activation in training.
        fc_dropout: without effect, as in neuralforecast.
        head_dropout: probability of dropping an output in training.
        attn_dropout: probability of dropping an attention weight in training.
        patch_len: steps per patch.
        stride: steps between patches.
        revin: normalise each window, and undo that on the forecast.
        revin_affine: give that normalisation a learned factor and shift.
        revin_subtract_last: subtract the window's last value instead of its mean.
        activation: "gelu" or "relu".
        res_attention: add the scores of the previous layer.
        batch_normalization: normalise before each sublayer instead of after it.
        learn_pos_embed: train the position embedding.
        SETTINGS

    Raises:
        ValueError: an argument is out of range or of another type.
    """

    def __init__(
        self,
        h: int,
        input_size: int,
        *,
        encoder_layers: int = 3,
        n_heads: int = 16,
        hidden_size: int = 128,
        linear_hidden_size: int = 256,
        dropout: float = 0.2,
        fc_dropout: float = 0.2,
        head_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        patch_len: int = 16,
        stride: int = 8,
        revin: bool = True,
        revin_affine: bool = False,
        revin_subtract_last: bool = True,
        activation: str = "gelu",
        res_attention: bool = True,
        batch_normalization: bool = False,
        learn_pos_embed: bool = True,
        output_size: int = 1,
        use_flash_attention: bool = False,
        flash_block_size: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())


@_complete(_SAME_RESULTS)
class iTransformer(ForecastModel):  # noqa: N801  (the paper's and neuralforecast's spelling)
    """iTransformer (Liu et al., arXiv:2310.06625): attention over series, one token each.

    Input: insample_y [B, input_size, n_series], futr_exog [B, F, input_size + h, n_series].
    Output: [B, h, output_size * n_series], with the series varying fastest.

    Args:
        h: steps to forecast.
        input_size: steps of the past that the model sees.
        n_series: series in a window.
        futr_exog_list: names of the columns known for the past and the future; None for none.
        hidden_size: width of the model.
        n_heads: attention heads.
        e_layers: layers of the encoder.
        d_layers: without effect, as in neuralforecast.
        d_ff: width of the feed-forward layers.
        factor: without effect, as in neuralforecast.
        dropout: probability of dropping an activation or an attention weight in training.
        use_norm: normalise each series of a window, and undo that on the forecast.
        SETTINGS

    Raises:
        ValueError: an argument is out of range or of another type.
    """

    def __init__(
        self,
        h: int,
        input_size: int,
        n_series: int,
        futr_exog_list: Sequence[str] | None = None,
        *,
        hidden_size: int = 512,
        n_heads: int = 8,
        e_layers: int = 2,
        d_layers: int = 1,
        d_ff: int = 2048,
        factor: int = 1,
        dropout: float = 0.1,
        use_norm: bool = True,
        output_size: int = 1,
        use_flash_attention: bool = False,
        flash_block_size: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())
