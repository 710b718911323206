// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// declare.c as a C++ service might do it: each in a thread of its own, and no "fork".
#include <phasewatch/client.h>

#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <unistd.h>

static void declare(const char *argument)
{
	std::istringstream in(argument);
	std::uint64_t epoch;
	std::string reason;
	int phase;
	char colon;

	in >> phase >> colon >> epoch >> colon;
	std::getline(in, reason);
	int result = pw_declare(static_cast<pw_phase>(phase), epoch, reason.c_str());
	std::cout << getpid() << ' ' << result << ' ' << (result ? pw_last_error() : "") << '\n';
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		std::thread(declare, argv[i]).join();
}
