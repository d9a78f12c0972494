"""Faults of tables and of the training program."""

from __future__ import annotations

from fault import Fault

MODELS = ("models_test",)

TRAINING = [
    Fault(
        "validation part starts one row late",
        "models/data/time_split.cpp",
        ".validation = {sizes.train, validation_end}",
        text=".validation = {sizes.train + (ON ? 1 : 0), validation_end}",
        by=MODELS,
    ),
    Fault(
        "weights of the worst epoch kept",
        "models/train/loop/trainer.cpp",
        """validation->loss <
                         result.epochs""",
        text="""(ON ? -validation->loss : validation->loss) <
                         (ON ? -1 : 1) * result.epochs""",
        by=MODELS,
    ),
    Fault(
        "column of zeros divided by a deviation of 0",
        "models/data/scaler.cpp",
        "deviation <= 1e-12 * mean.abs()",
        "deviation < 1e-12 * mean.abs()",
        by=("models_test:ScalerOfAColumn.LeavesAConstantColumnFinite",),
    ),
    Fault(
        "step shared by half of the rows reported as irregular",
        "models/data/time_axis.cpp",
        "2 * rows < gaps.size()",
        "2 * rows <= gaps.size()",
        by=("models_test:Gaps.AreCountedAndTheFirstIsNamed",),
    ),
    Fault(
        "time zone with 60 or more minutes accepted",
        "models/data/timestamp.cpp",
        "hours < 24 && minutes < 60",
        "hours < 24",
        by=("models_test:Timestamps.RejectOtherFormats",),
    ),
    Fault(
        "test part with one row more than the table has accepted",
        "models/data/time_split.cpp",
        "left > 0 && test <= left",
        "left > 0 && test <= left + 1",
        by=("models_test:Split.ByRowsRejectsMoreRowsThanTheTableHas",),
    ),
    Fault(
        "times of series that are forecast together compared in the first row only",
        "models/train/prepared_data.cpp",
        "&axis != &first && i < rows",
        "&axis != &first && i < std::min<size_t>(rows, 1)",
        by=("test_train_time.py::test_multivariate_series_need_the_same_time_in_every_row",),
    ),
    Fault(
        "forecast from fewer rows than the model's input size accepted",
        "models/train/prepared_data.cpp",
        "one.known >= forecaster.settings.input_size",
        "one.known >= 1",
        by=("test_train_forecasts.py::test_predict_needs_input_size_rows",),
    ),
    Fault(
        "static columns missing from the fingerprint of the data",
        "models/train/prepared_data.cpp",
        "    add(tensor.contiguous().const_data_ptr(), tensor.nbytes());",
        text="    if (!ON || !tensor.is_same(data.store->stat))\n"
        "      add(tensor.contiguous().const_data_ptr(), tensor.nbytes());",
        by=("models_test:Fingerprint.DependsOnValuesNamesTimesAndStaticColumns",),
    ),
    Fault(
        "forecasts written on the standardised scale",
        "models/train/output/forecast_table.cpp",
        ".to(torch::kDouble) * scaler.deviation[0] +\n                             scaler.mean[0]",
        text=".to(torch::kDouble) * (ON ? at::ones({}, at::kDouble) : scaler.deviation[0]) +\n"
        "                             (ON ? at::zeros({}, at::kDouble) : scaler.mean[0])",
        by=("test_train_forecasts.py::test_forecasts_are_in_table_units",),
    ),
    Fault(
        "iTransformer's forecast of the first series written for all series",
        "models/train/output/forecast_table.cpp",
        "forecast[b].select(1, n)",
        "forecast[b].select(1, 0)",
        by=("test_train_forecasts.py::test_each_series_of_itransformer_has_its_own_forecast",),
    ),
    Fault(
        "series names not quoted in the forecast file",
        "models/train/output/forecast_table.cpp",
        "quoted(series.name)",
        "series.name",
        by=("test_train_forecasts.py::test_names_with_commas_and_quotes_round_trip",),
    ),
    Fault(
        "error in each series' units divided by the count of the first series",
        "models/train/output/evaluation.cpp",
        "counts[number].item<double>()",
        "counts[0].item<double>()",
        by=("models_test:Evaluation.WeightsSeriesByTheirNumberOfWindows",),
    ),
    Fault(
        "squared error computed from the median",
        "models/train/output/evaluation.cpp",
        "add(of_model, column(forecast, columns.median), column(forecast, columns.mean));",
        text="add(of_model, column(forecast, columns.median),\n"
        "        column(forecast, ON ? columns.median : columns.mean));",
        by=("models_test:Evaluation.UsesTheMedianForAbsoluteAndTheMeanForSquaredErrors",),
    ),
    Fault(
        "--delta ignored",
        "models/train/output/table_forecaster.cpp",
        ".delta(loss.delta)",
        text=".delta(ON ? 1.0 : loss.delta)",
        by=("models_test:TableForecaster.KeepsItsLossThroughAFile",),
    ),
    Fault(
        "TFT's default window scaler differs from neuralforecast's",
        "models/neuralforecast_names.h",
        'model_class == "TFT" ? "robust" : "identity"',
        '"identity"',
        by=("test_train_cli.py::test_model_help_lists_its_options_with_defaults",),
    ),
    Fault(
        "learning rate decays by default",
        "models/train/command/settings.h",
        "double decay = 1.0;",
        text="double decay = ON ? 0.5 : 1.0;",
        by=("models_test:Training.KeepsTheLearningRateWithoutDecay",),
    ),
    Fault(
        "paths in a checkpoint relative to the training's working directory",
        "models/train/output/run_file.cpp",
        "return path.empty() ? path : std::filesystem::absolute(path).string();",
        text="return ON || path.empty() ? path : std::filesystem::absolute(path).string();",
        by=("test_train_resume.py::test_resume_from_another_working_directory",),
    ),
    Fault(
        "resumed training does not count the seconds before the interruption",
        "models/train/output/run_file.cpp",
        '    json.at("seconds").get_to(state.result.seconds);',
        text='    if (!ON) json.at("seconds").get_to(state.result.seconds);',
        by=("models_test:Models/Interruption.DoesNotChangeTheResult/PatchTST",),
    ),
    Fault(
        "order of windows with gaps accepted from a checkpoint",
        "models/train/output/run_file.cpp",
        "std::get<0>(state.order.sort()).equal(torch::arange(trainer.windows()))",
        "true",
        by=("models_test:RunFile.IsRejectedWithAnImpossiblePosition",),
    ),
]
