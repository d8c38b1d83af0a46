/* Another day and another disk, for programs that are preloaded with it: with CLOCK the
 * time is 400 days ahead, with ORDER the names in a directory come in a random order.
 * Programs that ask the kernel themselves, without the C library, see neither. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifdef CLOCK
#define AHEAD (400L * 86400)

int clock_gettime(clockid_t clock, struct timespec *at)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real)
		real = dlsym(RTLD_NEXT, "clock_gettime");
	int result = real(clock, at);
	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		at->tv_sec += AHEAD;
	return result;
}

int gettimeofday(struct timeval *at, void *zone)
{
	struct timespec now;
	(void)zone;
	clock_gettime(CLOCK_REALTIME, &now);
	at->tv_sec = now.tv_sec;
	at->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *at)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (at)
		*at = now.tv_sec;
	return now.tv_sec;
}
#endif

#ifdef ORDER
/* What is left of each open directory, shuffled when its first name is asked for. */
struct listing {
	DIR *directory;
	struct dirent **names;
	size_t count, next;
	struct listing *other;
};
static struct listing *listings;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static struct listing *take(DIR *directory)
{
	for (struct listing **at = &listings; *at; at = &(*at)->other)
		if ((*at)->directory == directory) {
			struct listing *found = *at;
			*at = found->other;
			return found;
		}
	return NULL;
}

static void forget(DIR *directory)
{
	pthread_mutex_lock(&mutex);
	struct listing *listing = take(directory);
	pthread_mutex_unlock(&mutex);
	if (!listing)
		return;
	for (size_t i = 0; i < listing->count; i++)
		free(listing->names[i]);
	free(listing->names);
	free(listing);
}

static struct listing *read_all(DIR *directory)
{
	static struct dirent *(*real)(DIR *);
	if (!real)
		real = dlsym(RTLD_NEXT, "readdir");
	struct listing *listing = calloc(1, sizeof *listing);
	unsigned seed = (unsigned)getpid() ^ (unsigned)(size_t)directory;
	struct dirent *entry;
	listing->directory = directory;
	while ((entry = real(directory))) {
		struct dirent *copy = malloc(sizeof *copy);
		memcpy(copy, entry, entry->d_reclen < sizeof *copy ? entry->d_reclen : sizeof *copy);
		listing->names = realloc(listing->names, (listing->count + 1) * sizeof copy);
		size_t at = (size_t)rand_r(&seed) % (listing->count + 1);
		listing->names[listing->count] = copy;
		listing->names[listing->count++] = listing->names[at];
		listing->names[at] = copy;
	}
	return listing;
}

struct dirent *readdir(DIR *directory)
{
	pthread_mutex_lock(&mutex);
	struct listing *listing = take(directory);
	if (!listing)
		listing = read_all(directory);
	listing->other = listings;
	listings = listing;
	struct dirent *entry = listing->next < listing->count ? listing->names[listing->next++] : NULL;
	pthread_mutex_unlock(&mutex);
	return entry;
}

struct dirent64 *readdir64(DIR *directory)
{
	_Static_assert(sizeof(struct dirent) == sizeof(struct dirent64), "they are one on 64 bits");
	return (struct dirent64 *)readdir(directory);
}

void rewinddir(DIR *directory)
{
	static void (*real)(DIR *);
	if (!real)
		real = dlsym(RTLD_NEXT, "rewinddir");
	forget(directory);
	real(directory);
}

int closedir(DIR *directory)
{
	static int (*real)(DIR *);
	if (!real)
		real = dlsym(RTLD_NEXT, "closedir");
	forget(directory);
	return real(directory);
}
#endif
