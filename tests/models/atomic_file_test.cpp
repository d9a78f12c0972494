// AtomicFile: files are complete or absent; the order of writes to the disk, and what remains.

#include "storage/atomic_file.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace {

/// AtomicFile's calls of fsync: "file" or "folder".
std::vector<std::string> synced;
int fsync_error = 0;

}  // namespace

/// Replaces the system's function, for libflash_models too.
extern "C" __attribute__((visibility("default"))) int fsync(int descriptor) {
  struct stat what = {};
  fstat(descriptor, &what);
  synced.emplace_back(S_ISDIR(what.st_mode) ? "folder" : "file");
  if (fsync_error != 0) {
    errno = fsync_error;
    return -1;
  }
  return static_cast<int>(syscall(SYS_fsync, descriptor));
}

namespace flash::tests {
namespace {

namespace fs = std::filesystem;
using models::AtomicFile;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;

class AtomicFiles : public testing::Test {
 protected:
  AtomicFiles()
      : folder_(fs::temp_directory_path() / ("flash_atomic_" + std::to_string(getpid()))) {
    fs::create_directory(folder_);
    synced.clear();
  }
  ~AtomicFiles() override {
    fsync_error = 0;
    fs::remove_all(folder_);
  }

  std::string path(const std::string& name = "file") const { return folder_ / name; }
  void put(const std::string& text, const std::string& name = "file") const {
    std::ofstream(path(name)) << text;
  }
  std::string contents(const std::string& name = "file") const {
    std::stringstream text;
    text << std::ifstream(path(name)).rdbuf();
    return text.str();
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      found.push_back(entry.path().filename());
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  fs::path folder_;
};

TEST_F(AtomicFiles, AppearAfterTheyAreSyncedToDisk) {
  put("old");
  AtomicFile file(path());
  file.write("new, ");
  file.write("and all of it");
  EXPECT_EQ(contents(), "old");
  EXPECT_THAT(synced, IsEmpty());
  file.commit();
  EXPECT_EQ(contents(), "new, and all of it");
  EXPECT_THAT(synced, ElementsAre("file", "folder"));
  EXPECT_THAT(names(), ElementsAre("file"));
}

TEST_F(AtomicFiles, LeaveNoTemporaryFileWhenNotCommitted) {
  put("old");
  { AtomicFile(path()).write("half"); }
  EXPECT_EQ(contents(), "old");
  EXPECT_THAT(names(), ElementsAre("file"));
}

TEST_F(AtomicFiles, KeepTheOldContentsWhenTheDiskFails) {
  put("old");
  fsync_error = EIO;
  EXPECT_THAT(
      [&] {
        AtomicFile file(path());
        file.write("new");
        file.commit();
      },
      ThrowsMessage<c10::ValueError>(
          HasSubstr(path() + ": cannot be written: Input/output error")));
  EXPECT_EQ(contents(), "old");
  EXPECT_THAT(names(), ElementsAre("file"));
}

TEST_F(AtomicFiles, AcceptFileSystemsWithoutSync) {
  fsync_error = EINVAL;
  AtomicFile file(path());
  file.write("new");
  file.commit();
  EXPECT_EQ(contents(), "new");
}

TEST_F(AtomicFiles, OfTheSameNameDoNotCollide) {
  AtomicFile first(path()), second(path());
  first.write("first");
  second.write("second");
  second.commit();
  EXPECT_EQ(contents(), "second");
  first.commit();
  EXPECT_EQ(contents(), "first");
  EXPECT_THAT(names(), ElementsAre("file"));
}

TEST_F(AtomicFiles, OfSeveralThreadsAreComplete) {
  const std::string texts[] = {std::string(100'000, 'a'), std::string(70'000, 'b')};
  std::vector<std::thread> threads;
  for (const std::string& text : texts) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        AtomicFile file(path());
        for (size_t at = 0; at < text.size(); at += 1000) file.write(text.data() + at, 1000);
        file.commit();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(contents(), testing::AnyOf(texts[0], texts[1]));
  EXPECT_THAT(names(), ElementsAre("file"));
}

TEST_F(AtomicFiles, KeepSymbolicLinksAndPermissions) {
  put("old", "target");
  fs::permissions(path("target"), fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink(path("target"), path("link"));
  AtomicFile file(path("link"));
  file.write("new");
  file.commit();
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(contents("target"), "new");
  EXPECT_EQ(fs::status(path("target")).permissions(),
            fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_THAT(names(), ElementsAre("link", "target"));
}

TEST_F(AtomicFiles, RespectTheUmask) {
  const mode_t before = umask(027);
  AtomicFile file(path());
  file.commit();
  umask(before);
  EXPECT_EQ(static_cast<unsigned>(fs::status(path()).permissions()), 0640u);
}

TEST_F(AtomicFiles, WriteToADeviceInsteadOfReplacingIt) {
  fs::create_symlink("/dev/null", path("null"));
  AtomicFile::check(path("null"));
  AtomicFile null(path("null"));
  null.write("gone");
  null.commit();
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  fs::create_symlink("/dev/full", path("full"));
  AtomicFile full(path("full"));
  EXPECT_THAT([&] { full.write("too much"); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("full: cannot be written: No space left on device")));
}

TEST_F(AtomicFiles, DoNotOpenAPipeBeforeWriting) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  AtomicFile::check(path("pipe"));  // would wait for a reader
  std::string read;
  std::thread reader([&] { read = contents("pipe"); });
  AtomicFile pipe(path("pipe"));
  pipe.write("through the pipe");
  pipe.commit();
  reader.join();
  EXPECT_EQ(read, "through the pipe");
}

TEST_F(AtomicFiles, ReportWhyTheyCannotBeWritten) {
  const auto refusal = [](const std::string& name) {
    try {
      AtomicFile::check(name);
    } catch (const c10::ValueError& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string("not refused");
  };
  EXPECT_EQ(refusal("/nonexistent/file"),
            "/nonexistent/file: cannot be written: No such file or directory");
  EXPECT_EQ(refusal("/tmp"), "/tmp: cannot be written: Is a directory");
  EXPECT_THAT(refusal(path(std::string(250, 'x'))), HasSubstr("File name too long"));
  EXPECT_EQ(refusal(path()), "not refused");
  EXPECT_THAT(names(), IsEmpty());
}

}  // namespace
}  // namespace flash::tests
