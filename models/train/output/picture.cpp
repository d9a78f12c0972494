#include "train/output/picture.h"

#include <ATen/ATen.h>

#ifndef FLASH_WITH_CAIRO

namespace flash::models {

void check_pictures() {
  TORCH_CHECK_VALUE(false,
                    "--forecast-png: expected a flash_train compiled with Cairo's headers; "
                    "install libcairo2-dev and compile again, or use --forecast-csv");
}

void draw_forecast(const std::string&, const ForecastTable&) { check_pictures(); }

}  // namespace flash::models

#else

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <limits>
#include <memory>

#include "data/csv_reader.h"
#include "storage/atomic_file.h"
#include "train/output/evaluation.h"
#include "train/output/libcairo.h"

namespace flash::models {
namespace {

constexpr int kWidth = 1000, kPanelHeight = 260, kPanels = 8;
constexpr double kLeft = 80, kRight = 20, kTop = 34, kBottom = 32;

struct Colour {
  double red, green, blue, opacity;
};
constexpr Colour kInk{0.25, 0.25, 0.25, 1.0};
constexpr Colour kFrame{0.8, 0.8, 0.8, 1.0};
constexpr Colour kForecast{0.0, 0.447, 0.698, 1.0};
constexpr Colour kInterval{0.0, 0.447, 0.698, 0.2};

/// The step between ticks: 1, 2 or 5 times a power of ten, close to `step`.
double round_step(double step) {
  const double power = std::pow(10.0, std::floor(std::log10(step)));
  const double digit = step / power;
  return power * (digit < 1.5 ? 1.0 : digit < 3.5 ? 2.0 : digit < 7.5 ? 5.0 : 10.0);
}

/// One panel; x is time in rows, y the value.
class Panel {
 public:
  Panel(cairo_t* cairo, double top, int64_t first, int64_t last, double low, double high)
      : cairo_(cairo), top_(top), first_(first), last_(last), low_(low), high_(high) {
    const double step = round_step((high_ - low_) / 4.0);
    const double first_value = std::ceil(low_ / step) * step;
    for (int i = 0; first_value + i * step <= high_; ++i) {
      const double value = first_value + i * step;
      colour(kFrame, 1.0);
      libcairo().move_to(cairo_, kLeft, y(value));
      libcairo().line_to(cairo_, kWidth - kRight, y(value));
      libcairo().stroke(cairo_);
      char label[32];
      std::snprintf(label, sizeof(label), "%.6g", value);
      text(label, kLeft - 8, y(value) + 4, 1.0);
    }
  }

  void line(const at::Tensor& values, int64_t first, const Colour& with, double width) {
    colour(with, width);
    for (int64_t i = 0; i < values.size(0); ++i) {
      libcairo().line_to(cairo_, x(first + i), y(values[i].item<double>()));
    }
    libcairo().stroke(cairo_);
  }

  void band(const at::Tensor& low, const at::Tensor& high, int64_t first) {
    colour(kInterval, 1.0);
    const int64_t rows = low.size(0);
    for (int64_t i = 0; i < rows; ++i)
      libcairo().line_to(cairo_, x(first + i), y(low[i].item<double>()));
    for (int64_t i = rows - 1; i >= 0; --i) {
      libcairo().line_to(cairo_, x(first + i), y(high[i].item<double>()));
    }
    libcairo().close_path(cairo_);
    libcairo().fill(cairo_);
  }

  /// The text starts at x for anchor 0 and ends there for anchor 1.
  void text(const std::string& words, double at_x, double at_y, double anchor,
            const Colour& with = kInk) {
    cairo_text_extents_t extents;
    libcairo().text_extents(cairo_, words.c_str(), &extents);
    colour(with, 1.0);
    libcairo().move_to(cairo_, at_x - anchor * extents.x_advance, at_y);
    libcairo().show_text(cairo_, words.c_str());
  }

 private:
  double x(int64_t row) const {
    const double share = static_cast<double>(row - first_) /
                         static_cast<double>(std::max<int64_t>(1, last_ - first_));
    return kLeft + share * (kWidth - kLeft - kRight);
  }
  double y(double value) const {
    const double share = (value - low_) / (high_ - low_);
    return top_ + kPanelHeight - kBottom - share * (kPanelHeight - kTop - kBottom);
  }
  void colour(const Colour& c, double width) {
    libcairo().set_source_rgba(cairo_, c.red, c.green, c.blue, c.opacity);
    libcairo().set_line_width(cairo_, width);
    libcairo().new_path(cairo_);
  }

  cairo_t* cairo_;
  double top_;
  int64_t first_, last_;
  double low_, high_;
};

void draw_panel(cairo_t* cairo, double top, const SeriesForecast& series,
                const ForecastTable& table) {
  const ForecastColumns columns(table.columns);
  const int64_t rows = series.forecast.size(0);
  // Some of the past, so that one sees how the forecast continues it.
  const int64_t shown =
      std::min(series.past.size(0), std::max<int64_t>(rows / 8, 2 * table.horizon));
  const at::Tensor past = series.past.slice(0, series.past.size(0) - shown);
  const at::Tensor known = series.truth.defined() ? at::cat({past, series.truth}) : past;
  std::vector<at::Tensor> all{known, series.forecast.select(1, columns.median)};
  if (!columns.intervals.empty()) {
    all.push_back(series.forecast.select(1, columns.intervals[0].low));
    all.push_back(series.forecast.select(1, columns.intervals[0].high));
  }
  const at::Tensor values = at::cat(all);
  double low = values.min().item<double>(), high = values.max().item<double>();
  // Wide enough that the axis' ends and ticks are distinct in floating point.
  const double least = 1e-9 * std::max(std::abs(low), std::abs(high));
  const double margin = high > low ? std::max(0.05 * (high - low), least) : std::max(1.0, least);
  low -= margin;
  high += margin;
  Panel panel(cairo, top, -shown, rows - 1, low, high);
  panel.line(known, -shown, kInk, 1.2);
  for (int64_t begin = 0; begin < rows; begin += table.horizon) {
    const at::Tensor part = series.forecast.slice(0, begin, begin + table.horizon);
    if (!columns.intervals.empty()) {
      const auto& widest = columns.intervals[0];
      panel.band(part.select(1, widest.low), part.select(1, widest.high), begin);
    }
    panel.line(part.select(1, columns.median), begin, kForecast, 1.8);
  }
  panel.text(models::printable(series.name), kLeft, top + 22, 0.0);
  std::string legend = "forecast";
  if (!columns.intervals.empty()) legend += ", interval of " + columns.intervals[0].level + " %";
  panel.text(legend, kWidth - kRight, top + 22, 1.0, kForecast);
  panel.text("forecasts from " + series.labels.front() + " to " + series.labels.back(),
             kWidth - kRight, top + kPanelHeight - 10, 1.0);
}

/// A file that Cairo writes to. Exceptions must not propagate through Cairo.
struct Png {
  AtomicFile file;
  std::exception_ptr problem;

  static cairo_status_t write(void* png, const unsigned char* bytes, unsigned count) {
    auto* self = static_cast<Png*>(png);
    try {
      self->file.write(bytes, count);
    } catch (...) {
      self->problem = std::current_exception();
      return CAIRO_STATUS_WRITE_ERROR;
    }
    return CAIRO_STATUS_SUCCESS;
  }
};

}  // namespace

void check_pictures() { libcairo(); }

void draw_forecast(const std::string& path, const ForecastTable& table) {
  const auto panels = static_cast<int>(std::min<size_t>(table.series.size(), kPanels));
  const std::unique_ptr<cairo_surface_t, decltype(&cairo_surface_destroy)> surface(
      libcairo().image_surface_create(CAIRO_FORMAT_RGB24, kWidth, panels * kPanelHeight),
      libcairo().surface_destroy);
  const std::unique_ptr<cairo_t, decltype(&cairo_destroy)> cairo(libcairo().create(surface.get()),
                                                                 libcairo().destroy);
  libcairo().set_source_rgb(cairo.get(), 1.0, 1.0, 1.0);
  libcairo().paint(cairo.get());
  libcairo().select_font_face(cairo.get(), "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                              CAIRO_FONT_WEIGHT_NORMAL);
  libcairo().set_font_size(cairo.get(), 13.0);
  for (int i = 0; i < panels; ++i) {
    draw_panel(cairo.get(), i * kPanelHeight, table.series[static_cast<size_t>(i)], table);
  }
  Png png{.file = AtomicFile(path), .problem = nullptr};
  const cairo_status_t status =
      libcairo().surface_write_to_png_stream(surface.get(), Png::write, &png);
  if (png.problem) std::rethrow_exception(png.problem);
  TORCH_CHECK_VALUE(status == CAIRO_STATUS_SUCCESS, path,
                    ": cannot be written: ", libcairo().status_to_string(status));
  png.file.commit();
}

}  // namespace flash::models

#endif
