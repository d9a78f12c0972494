# The files of models_test, relative to tests/.
set(FLASH_MODELS_TEST_SOURCES
  models/fixture.cpp
  models/patchtst_test.cpp)
