# Installs the build directory BUILD into a fresh prefix, moves the prefix, builds this folder's
# project against it and runs it. Moved, because an installation that remembers where it was made
# works on the machine that made it only.

set(work ${BUILD}/install_test)
file(REMOVE_RECURSE ${work})

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/first)
file(RENAME ${work}/first ${work}/prefix)
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${work}/consumer -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${work}/prefix -DTorch_DIR=${TORCH_DIR})
run(${CMAKE_COMMAND} --build ${work}/consumer)
run(${work}/consumer/consumer)
run(${work}/prefix/bin/flash_train --help)

# Beside another Torch the package must not be found, and say why.
file(WRITE ${work}/torch/TorchConfig.cmake "")
file(WRITE ${work}/torch/TorchConfigVersion.cmake
     "set(PACKAGE_VERSION 2.12.1)\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n")
execute_process(
  COMMAND ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${work}/other -G ${GENERATOR}
          -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${work}/prefix
          -DTorch_DIR=${work}/torch
  ERROR_VARIABLE printed RESULT_VARIABLE failed)
string(REGEX REPLACE "[ \n]+" " " printed "${printed}")
set(expected "was built against Torch .*, found 2.12.1. Run: .* pip install torch==")
if(NOT failed OR NOT printed MATCHES "${expected}")
  message(FATAL_ERROR "expected find_package to refuse Torch 2.12.1, got: ${printed}")
endif()
