// What the demo page finds around it: supabase-js from its bundle, and our tables.
import type { SupabaseClient } from "@supabase/supabase-js";
import type { BallastClient as AnyClient } from "../../clients/ballast";
import type { Database } from "./database";

declare global {
  type Client = SupabaseClient<Database>;
  type BallastClient = AnyClient<Database>;
  var supabase: typeof import("@supabase/supabase-js");
}
