#pragma once
/// Marks what libflash_attention.so and libflash_models.so export; everything else is hidden.
#define FLASH_API __attribute__((visibility("default")))
