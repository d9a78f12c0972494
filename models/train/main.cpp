#include "train/program.h"

int main(int argc, char** argv) { return flash_train_main(argc, argv); }
