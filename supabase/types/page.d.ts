// What the demo page finds around it: supabase-js from its bundle, and our tables.
import type { SupabaseClient } from "@supabase/supabase-js";
import type { Database } from "./database";

declare global {
  type Client = SupabaseClient<Database>;
  var supabase: { createClient(url: string, key: string, options: object): Client };
}
