#pragma once
// Cairo, loaded when the first picture is drawn, so that it is required for pictures only.

#include <cairo.h>

// The functions that pictures need, each as FLASH_CAIRO(name) for cairo_name.
#define FLASH_CAIRO_FUNCTIONS(FLASH_CAIRO) \
  FLASH_CAIRO(close_path)                  \
  FLASH_CAIRO(create)                      \
  FLASH_CAIRO(destroy)                     \
  FLASH_CAIRO(fill)                        \
  FLASH_CAIRO(image_surface_create)        \
  FLASH_CAIRO(line_to)                     \
  FLASH_CAIRO(move_to)                     \
  FLASH_CAIRO(new_path)                    \
  FLASH_CAIRO(paint)                       \
  FLASH_CAIRO(select_font_face)            \
  FLASH_CAIRO(set_font_size)               \
  FLASH_CAIRO(set_line_width)              \
  FLASH_CAIRO(set_source_rgb)              \
  FLASH_CAIRO(set_source_rgba)             \
  FLASH_CAIRO(show_text)                   \
  FLASH_CAIRO(status_to_string)            \
  FLASH_CAIRO(stroke)                      \
  FLASH_CAIRO(surface_destroy)             \
  FLASH_CAIRO(surface_write_to_png_stream) \
  FLASH_CAIRO(text_extents)

namespace flash::models {

/// Functions of libcairo.so.2 by their names without `cairo_`.
struct LibCairo {
#define FLASH_CAIRO(name) decltype(&cairo_##name) name;
  FLASH_CAIRO_FUNCTIONS(FLASH_CAIRO)
#undef FLASH_CAIRO
};

/// Throws c10::ValueError with the package to install if the library is missing.
const LibCairo& libcairo();

}  // namespace flash::models
