#pragma once

#include <flash_attention/export.h>

/// The program flash_train, with main's arguments and exit status. Handles SIGINT, SIGTERM and
/// SIGHUP during training, and ignores SIGPIPE and SIGXFSZ until it returns.
extern "C" FLASH_API int flash_train_main(int argc, char** argv);

/// The same for the processes of a group of torch.distributed, by its name, that train together.
extern "C" FLASH_API int flash_train_main_of_group(int argc, char** argv, const char* group);
