# Installs the build directory BUILD into a new prefix, moves the prefix, builds this folder's
# project against it and runs it. The move checks that the installation is relocatable.

set(work ${BUILD}/install_test)
file(REMOVE_RECURSE ${work})

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/first)
file(RENAME ${work}/first ${work}/prefix)
set(configure ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${COMPILER})
run(${configure} -B ${work}/consumer -DCMAKE_PREFIX_PATH=${work}/prefix
    -DTorch_DIR=${TORCH}/share/cmake/Torch)
run(${CMAKE_COMMAND} --build ${work}/consumer)
run(${work}/consumer/consumer)
run(${work}/prefix/bin/flash_train --help)

# With another torch, find_package must fail and say why.
set(other ${work}/other_torch)
file(MAKE_DIRECTORY ${other}/share/cmake)
file(WRITE ${other}/include/torch/csrc/api/include/torch/torch.h "")
file(WRITE ${other}/include/torch/headeronly/version.h
     "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 12\n#define TORCH_VERSION_PATCH 1\n")
execute_process(
  COMMAND ${configure} -B ${work}/other "-DCMAKE_PREFIX_PATH=${work}/prefix;${other}/share/cmake"
  ERROR_VARIABLE printed RESULT_VARIABLE failed)
string(REGEX REPLACE "[ \n]+" " " printed "${printed}")
set(expected "expected torch 2\\.[0-9]+, found torch 2\\.12\\.1 in .* pip install .torch==")
if(NOT failed OR NOT printed MATCHES "${expected}")
  message(FATAL_ERROR "expected find_package to refuse torch 2.12.1, got: ${printed}")
endif()
