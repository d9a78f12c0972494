"""Faults of the models."""

from __future__ import annotations

from fault import Fault, skipped

MODELS = ("models_test",)

FORECASTERS = [
    Fault(
        "RevIN divides by the unbiased deviation",
        "models/layers/patchtst/rev_in.cpp",
        "windows.var(1, /*unbiased=*/false, /*keepdim=*/true)",
        "windows.var(1, /*unbiased=*/true, /*keepdim=*/true)",
        by=MODELS,
    ),
    Fault(
        "token convolution shifts in one direction only",
        "models/layers/common/data_embedding.cpp",
        "series.roll(-1, 1)",
        "series.roll(1, 1)",
        by=MODELS,
    ),
    Fault(
        "Informer selects the least active queries",
        "models/layers/informer/prob_attention.cpp",
        ".topk(selected, -1, /*largest=*/true, /*sorted=*/false)",
        text=".topk(selected, -1, /*largest=*/!(ON), /*sorted=*/false)",
        by=MODELS,
    ),
    Fault(
        "iTransformer normalizes over the series instead of over time",
        "models/itransformer.cpp",
        "series.mean(2, /*keepdim=*/true)",
        "series.mean(1, /*keepdim=*/true).expand_as(series.mean(2, /*keepdim=*/true))",
        by=MODELS,
    ),
    Fault(
        "TFT sums the heads instead of taking their mean",
        "models/layers/tft/interpretable_attention.cpp",
        "heads.mean(1)",
        "heads.sum(1)",
        by=MODELS,
    ),
    Fault(
        "scaler minmax1 not mapped to [-1, 1]",
        "models/temporal_norm.cpp",
        "z = (z + 1.0) / 2.0",
        "z = z / 2.0",
        by=MODELS,
    ),
    skipped(
        "zeros on the left of a short series taken for measurements",
        "models/forecasting/forecast_windows.cpp",
        "mask.data[t * mask.stride] = 0.0F;",
        by=("models_test:Forecaster.PadsAShortSeriesWithZerosThatTheWindowScalerLeavesOut",),
    ),
    Fault(
        "quantiles of several series read in the order of flash_train",
        "models/forecasting/forecaster_file.cpp",
        'loss->name() == "MQLoss" && n_series > 1',
        "false",
        by=("models_test:Forecaster.ReadsQuantilesOfSeveralSeriesInNeuralforecastsOrder",),
    ),
    Fault(
        "forecast not brought back to the series' level",
        "models/forecasting/forecaster.cpp",
        "of_series(shift)",
        "at::zeros_like(of_series(shift))",
        by=("models_test:Forecaster.ScalesWholeSeriesAsTheFolderSays",),
    ),
    Fault(
        "PatchTST ignores head_dropout",
        "models/patchtst.cpp",
        "options_.head_dropout()",
        "0.0",
        by=("models_test:PatchTSTModel.AppliesHeadDropoutOnlyInTraining",),
    ),
    Fault(
        "PatchTST applies one dropout to the attention's output instead of two",
        "models/layers/patchtst/patch_encoder.cpp",
        "1.0 - (1.0 - dropout) * (1.0 - dropout)",
        "dropout",
        by=("models_test:PatchTSTModel.AppliesDropoutTwiceToTheAttentionOutput",),
    ),
    Fault(
        "PatchTST's standard attention does not scale the weights that dropout keeps",
        "models/layers/patchtst/residual_attention.cpp",
        "dropout < 1.0 ? 1.0 / (1.0 - dropout) : 0.0",
        "dropout < 1.0 ? 1.0 : 0.0",
        by=("models_test:PatchTSTModel.DropsTheSameAttentionWeightsWithEitherAttention",),
    ),
    Fault(
        "iTransformer drops no attention weights in training",
        "models/layers/common/full_attention.cpp",
        "training ? dropout_ : 0.0",
        "0.0",
        by=("models_test:ITransformerModel.DropsAttentionWeightsOnlyInTraining",),
    ),
    Fault(
        "token embedding ignores dropout",
        "models/layers/common/data_embedding.cpp",
        "return flash::dropout(tokens, options_.dropout, is_training());",
        text="return flash::dropout(tokens, ON ? 0.0 : options_.dropout, is_training());",
        by=("models_test:AutoformerModel.DropsElementsOfTokensOnlyInTraining",),
    ),
    Fault(
        "TFT ignores dropout after its attention",
        "models/layers/tft/interpretable_attention.cpp",
        "options_.output_dropout",
        "0.0",
        by=("models_test:TFTModel.AppliesDropoutAfterAttentionOnlyInTraining",),
    ),
    Fault(
        "Autoformer's delays checked for the encoder only",
        "models/autoformer.cpp",
        "    check_delays(options.factor(), network.label_length + network.h);",
        text="    if (!ON) check_delays(options.factor(), network.label_length + network.h);",
        by=("models_test:AutoformerModel.RejectsOptionsOutOfRange",),
    ),
    Fault(
        "FEDformer accepts a frequency one above the highest",
        "models/fedformer.cpp",
        "list.back() <= length / 2",
        "list.back() <= length / 2 + 1",
        by=("models_test:FEDformerModel.AcceptsFrequenciesUpToHalfTheLength",),
    ),
    Fault(
        "FEDformer's modes considered complete by the encoder's length alone",
        "models/layers/decomposition/fourier_modes.cpp",
        "std::max(input_size, decoder_length(h, input_size))",
        "input_size",
        by=(
            "models_test:FEDformerCheckpoint.WithoutFrequenciesAndSeedIsAcceptedIfAllFrequenciesAreUsed",
        ),
    ),
    Fault(
        "Informer's longest sequence is one step too long for its position table",
        "models/informer.cpp",
        "std::max(options.input_size(), label + options.h())",
        "options.input_size()",
        by=("models_test:InformerModel.RejectsInvalidOptionsAndWindows",),
    ),
    Fault(
        "layers recomputed in the default dtype of autocast",
        "models/gradient_checkpoint.cpp",
        "    at::autocast::set_autocast_dtype(at::kCPU, dtype);",
        text="    if (!ON) at::autocast::set_autocast_dtype(at::kCPU, dtype);",
        by=("models_test:GradientCheckpoint.RecomputesUnderTheSameAutocast",),
    ),
    Fault(
        "U16 tensor of a safetensors file read as signed",
        "models/storage/safetensors_header.cpp",
        "  return found->type;",
        text="  if (ON && found->type == c10::ScalarType::UInt16) return c10::ScalarType::Short;\n"
        "  return found->type;",
        by=("models_test:Safetensors.RoundTripTypesThatTorchOnlyStores",),
    ),
    Fault(
        "header of a safetensors file not padded, so that its data is not aligned",
        "models/storage/safetensors.cpp",
        "(text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes",
        "text.size()",
        by=("models_test:Safetensors.HaveAlignedData",),
    ),
]
