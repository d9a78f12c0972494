#pragma once

#include <flash_attention/export.h>

/// The program flash_train: the command line as main gets it, the exit status as main returns it.
/// SIGINT, SIGTERM and SIGHUP are watched while it trains, SIGPIPE and SIGXFSZ ignored until it
/// returns.
extern "C" FLASH_API int flash_train_main(int argc, char** argv);
