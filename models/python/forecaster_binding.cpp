// torch.classes.flash_models.Forecaster, the basis of the Python class.

#include <flash_attention/models/forecaster.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <tuple>
#include <utility>

namespace flash::models {
namespace {

using Tensors = std::vector<at::Tensor>;
using Names = std::vector<std::string>;
using Texts = c10::Dict<std::string, std::string>;
using TensorsByName = c10::Dict<std::string, at::Tensor>;

class PythonForecaster : public torch::CustomClassHolder {
 public:
  PythonForecaster(const std::string& path, const std::string& model)
      : forecaster_(Forecaster::load(path, model)) {}
  explicit PythonForecaster(Forecaster forecaster) : forecaster_(std::move(forecaster)) {}

  /// Class, h, input_size, series that are forecast together, names of outputs and of series.
  std::tuple<std::string, int64_t, int64_t, int64_t, Names, Names> properties() {
    return {forecaster_.model_class(), forecaster_.horizon(),      forecaster_.input_size(),
            forecaster_.n_series(),    forecaster_.output_names(), forecaster_.series_names()};
  }

  /// The members of SeriesColumns, in their order.
  std::tuple<std::string, std::string, Names, Names, Names, Names> columns() {
    const SeriesColumns& columns = forecaster_.columns();
    return {columns.id,        columns.time,      columns.targets,
            columns.futr_exog, columns.hist_exog, columns.stat_exog};
  }

  /// The other lists are empty, or have one element for each of `y`.
  at::Tensor predict(Tensors y, Tensors futr_exog, Tensors hist_exog, Tensors stat_exog,
                     Names names) {
    std::vector<RawSeries> series(y.size());
    const auto element = [](auto& list, size_t i) {
      return list.empty() ? typename std::decay_t<decltype(list)>::value_type{}
                          : std::move(list.at(i));
    };
    for (size_t i = 0; i < y.size(); ++i) {
      series[i] = {.y = std::move(y[i]),
                   .futr_exog = element(futr_exog, i),
                   .hist_exog = element(hist_exog, i),
                   .stat_exog = element(stat_exog, i),
                   .name = element(names, i)};
    }
    return forecaster_.predict(series);
  }

  void save(const std::string& path) { forecaster_.save(path); }

  /// Tensors and metadata of a file, for make_forecaster.
  std::tuple<TensorsByName, Texts> contents() {
    const SafetensorsFile file = forecaster_.contents();
    TensorsByName tensors;
    Texts metadata;
    for (const auto& [name, tensor] : file.tensors) tensors.insert(name, tensor);
    for (const auto& [key, text] : file.metadata) metadata.insert(key, text);
    return {tensors, metadata};
  }

 private:
  Forecaster forecaster_;
};

/// The forecaster of a file that Python has read.
c10::intrusive_ptr<PythonForecaster> make_forecaster(const TensorsByName& tensors,
                                                     const Texts& metadata) {
  SafetensorsFile file;
  for (const auto& item : tensors) file.tensors[item.key()] = item.value();
  for (const auto& item : metadata) file.metadata[item.key()] = item.value();
  return c10::make_intrusive<PythonForecaster>(Forecaster(file));
}

TORCH_LIBRARY_FRAGMENT(flash_models, m) {
  m.class_<PythonForecaster>("Forecaster")
      .def(torch::init<std::string, std::string>())
      .def("properties", &PythonForecaster::properties)
      .def("columns", &PythonForecaster::columns)
      .def("predict", &PythonForecaster::predict)
      .def("save", &PythonForecaster::save)
      .def("contents", &PythonForecaster::contents);
  m.def("make_forecaster", make_forecaster);
}

}  // namespace
}  // namespace flash::models
