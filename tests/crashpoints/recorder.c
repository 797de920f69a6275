/* Records, and makes fail, what a process does to the files of one directory. Loaded with LD_PRELOAD.
 *
 * Environment: CRASHPOINTS_DIRECTORY, the directory; CRASHPOINTS_LOG, where the record goes (a file outside of it).
 * Functions for the process: crashpoints_arm, crashpoints_count.
 *
 * A record is struct head, then the path (without the directory), then data: what was written, or the new name.
 * The lock is held around the call itself, so that the order of the records is the order of the calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 1024
#define NAME 240

enum { CREATED = 'c', WRITTEN = 'w', TRUNCATED = 't', SYNCED = 's', UNLINKED = 'u', RENAMED = 'r', MARKED = 'm' };

struct head {
    uint32_t path, data;
    int64_t offset;
    int32_t error; /* errno with which it was made to fail, or 0 */
    uint8_t kind, directory, pad[2];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char names[FILES][NAME];
static int known[FILES];
static char directory[4096];
static size_t directory_bytes;
static int log_fd = -1;
static long count, fail_from = -1, fail_to = -1;
static int fail_errno, fail_short;
static char fail_kinds[16];

__attribute__((constructor)) static void start(void)
{
    const char *where = getenv("CRASHPOINTS_DIRECTORY"), *log = getenv("CRASHPOINTS_LOG");
    if (where == NULL || strlen(where) + 2 > sizeof directory)
        return;
    strcpy(directory, where);
    directory_bytes = strlen(directory);
    if (log != NULL)
        log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* From now on: the calls numbered from..to-1 (counted anew from 0) of one of the kinds fail with the errno; a write of
 * more than one byte that fails "short" writes the half and says so. */
void crashpoints_arm(long from, long to, int error, int be_short, const char *kinds)
{
    pthread_mutex_lock(&lock);
    count = 0;
    fail_from = from;
    fail_to = to;
    fail_errno = error;
    fail_short = be_short;
    strncpy(fail_kinds, kinds, sizeof fail_kinds - 1);
    pthread_mutex_unlock(&lock);
}

/* How many calls of the armed kinds there were since crashpoints_arm. */
long crashpoints_count(void) { return count; }

/* The name below the directory, "" for itself, or NULL. The -shm file is the wal-index: SQLite never relies on its being
 * on the disk, so it is no part of this. */
static const char *inside(const char *path)
{
    if (directory_bytes == 0 || path == NULL || strncmp(path, directory, directory_bytes) != 0)
        return NULL;
    if (path[directory_bytes] == '\0')
        return path + directory_bytes;
    if (path[directory_bytes] != '/' || strlen(path) - directory_bytes > NAME - 1)
        return NULL;
    size_t length = strlen(path);
    if (length > 4 && strcmp(path + length - 4, "-shm") == 0)
        return NULL;
    return path + directory_bytes + 1;
}

static int must_fail(char kind)
{
    if (strchr(fail_kinds, kind) == NULL)
        return 0;
    long number = count++;
    return number >= fail_from && number < fail_to;
}

static void record(char kind, const char *path, const void *data, size_t bytes, off_t offset, int error, int is_directory)
{
    if (log_fd < 0)
        return;
    struct head head = {(uint32_t)strlen(path), (uint32_t)bytes, offset, error, (uint8_t)kind, (uint8_t)is_directory, {0}};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)data, bytes}};
    if (syscall(SYS_writev, log_fd, parts, 3) < 0)
        abort();
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (real == NULL) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int opened(const char *path, int flags, int mode)
{
    const char *name = inside(path);
    if (name == NULL)
        return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before;
    int creates = (flags & O_CREAT) && stat(path, &before) != 0, fd = -1, error = 0;
    if (creates && must_fail(CREATED))
        error = fail_errno;
    else
        fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && fd < FILES) {
        struct stat status;
        known[fd] = fstat(fd, &status) == 0 && S_ISDIR(status.st_mode) ? 2 : 1;
        strcpy(names[fd], name);
    }
    if (creates && (fd >= 0 || error))
        record(CREATED, name, NULL, 0, 0, error, 0);
    else if (fd >= 0 && (flags & O_TRUNC))
        record(TRUNCATED, name, NULL, 0, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    if (error) {
        errno = error;
        return -1;
    }
    return fd;
}

#define OPENING(function) \
    int function(const char *path, int flags, ...) \
    { \
        va_list list; \
        va_start(list, flags); \
        int mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, int) : 0; \
        va_end(list); \
        return opened(path, flags, mode); \
    }
OPENING(open)
OPENING(open64)

static int opened_at(int at, const char *path, int flags, int mode)
{
    return path[0] == '/' || at == AT_FDCWD ? opened(path, flags, mode) : (int)syscall(SYS_openat, at, path, flags, mode);
}

#define OPENING_AT(function) \
    int function(int at, const char *path, int flags, ...) \
    { \
        va_list list; \
        va_start(list, flags); \
        int mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, int) : 0; \
        va_end(list); \
        return opened_at(at, path, flags, mode); \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

int close(int fd)
{
    REAL(close);
    if (fd >= 0 && fd < FILES && known[fd]) {
        pthread_mutex_lock(&lock);
        known[fd] = 0;
        pthread_mutex_unlock(&lock);
    }
    return real(fd);
}

static ssize_t written(int fd, const void *data, size_t bytes, off_t offset, int positioned)
{
    if (fd < 0 || fd >= FILES || !known[fd])
        return positioned ? syscall(SYS_pwrite64, fd, data, bytes, offset) : syscall(SYS_write, fd, data, bytes);
    pthread_mutex_lock(&lock);
    int error = 0;
    ssize_t done;
    if (!positioned)
        offset = lseek(fd, 0, SEEK_CUR);
    if (must_fail(WRITTEN)) {
        error = fail_errno;
        done = -1;
        if (fail_short && bytes > 1) {
            done = syscall(SYS_pwrite64, fd, data, bytes / 2, offset);
            record(WRITTEN, names[fd], data, done, offset, 0, 0);
            error = 0;
        }
    } else {
        done = syscall(SYS_pwrite64, fd, data, bytes, offset);
        if (done < 0)
            error = errno;
        else
            record(WRITTEN, names[fd], data, done, offset, 0, 0);
    }
    if (!positioned && done > 0)
        lseek(fd, offset + done, SEEK_SET);
    pthread_mutex_unlock(&lock);
    if (done < 0)
        errno = error;
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes) { return written(fd, data, bytes, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) { return written(fd, data, bytes, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) { return written(fd, data, bytes, offset, 1); }

static int truncated(int fd, off_t length)
{
    if (fd < 0 || fd >= FILES || !known[fd])
        return syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    int error = must_fail(TRUNCATED) ? fail_errno : 0;
    int done = error ? -1 : (int)syscall(SYS_ftruncate, fd, length);
    if (done < 0 && !error)
        error = errno;
    if (done == 0)
        record(TRUNCATED, names[fd], NULL, 0, length, 0, 0);
    pthread_mutex_unlock(&lock);
    if (error)
        errno = error;
    return done;
}

int ftruncate(int fd, off_t length) { return truncated(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }

/* The record of a sync that failed says so: what it was to settle is unsettled for ever. */
static int synced(int fd, long number)
{
    if (fd < 0 || fd >= FILES || !known[fd])
        return syscall(number, fd);
    pthread_mutex_lock(&lock);
    int error = must_fail(SYNCED) ? fail_errno : 0;
    int done = error ? -1 : (int)syscall(number, fd);
    if (done < 0 && !error)
        error = errno;
    record(SYNCED, names[fd], NULL, 0, 0, error, known[fd] == 2);
    pthread_mutex_unlock(&lock);
    if (error)
        errno = error;
    return done;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int unlink(const char *path)
{
    const char *name = inside(path);
    if (name == NULL)
        return syscall(SYS_unlink, path);
    pthread_mutex_lock(&lock);
    struct stat before;
    int error = stat(path, &before) == 0 && must_fail(UNLINKED) ? fail_errno : 0;
    int done = error ? -1 : (int)syscall(SYS_unlink, path);
    if (done < 0 && !error)
        error = errno;
    if (done == 0)
        record(UNLINKED, name, NULL, 0, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    if (error)
        errno = error;
    return done;
}

int rename(const char *from, const char *to)
{
    const char *name = inside(from), *new_name = inside(to);
    if (name == NULL || new_name == NULL)
        return syscall(SYS_rename, from, to);
    pthread_mutex_lock(&lock);
    int error = must_fail(RENAMED) ? fail_errno : 0;
    int done = error ? -1 : (int)syscall(SYS_rename, from, to);
    if (done < 0 && !error)
        error = errno;
    if (done == 0)
        record(RENAMED, name, new_name, strlen(new_name), 0, 0, 0);
    pthread_mutex_unlock(&lock);
    if (error)
        errno = error;
    return done;
}

/* Put a word of the process's own into the record. */
void crashpoints_mark(const char *text)
{
    pthread_mutex_lock(&lock);
    record(MARKED, "", text, strlen(text), 0, 0, 0);
    pthread_mutex_unlock(&lock);
}
