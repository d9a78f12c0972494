# The files of models_test, relative to tests/.
set(FLASH_MODELS_TEST_SOURCES
  models/autoformer_test.cpp
  models/checkpoint_test.cpp
  models/csv_dataset_test.cpp
  models/fedformer_test.cpp
  models/fixture.cpp
  models/gradient_checkpoint_test.cpp
  models/informer_test.cpp
  models/itransformer_test.cpp
  models/losses_test.cpp
  models/parity.cpp
  models/patchtst_test.cpp
  models/registry_test.cpp
  models/safetensors_test.cpp
  models/temporal_norm_test.cpp
  models/tft_test.cpp
  models/training_test.cpp)
